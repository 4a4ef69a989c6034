"""Images a second of an optimizer step on one batch that is there already: layouts, optimizers, precisions, compilation."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from alexlab.benchmark.baselines import Job
from alexlab.benchmark.context import Measuring
from alexlab.benchmark.epochs import job_of
from alexlab.benchmark.interleave import Contender, Figures, repeated
from alexlab.benchmark.roofline import CEILING, elapsed, rates, share, train_flops
from alexlab.benchmark.table import Row
from alexlab.distributed.hardware import cpu_has_bfloat16, keep_memory
from alexlab.training.preprocessing import normalize


@dataclass(frozen=True)
class Way:
    """One way of making a step.

    Args:
        channels_last: the layout of weights and images.
        optimizer: the choice of the optimizer's implementation.
        bfloat16: under autocast.
        compiled: by `torch.compile`.
        keeps_memory: see `alexlab.distributed.hardware.keep_memory`.
    """

    channels_last: bool = True
    optimizer: dict[str, bool | None] = field(default_factory=lambda: {"fused": True})
    bfloat16: bool = False
    compiled: bool = False
    keeps_memory: bool = True


USUAL = Way(channels_last=False, optimizer={"fused": None}, keeps_memory=False)


def suite(measuring: Measuring) -> list[Row]:
    """Our way beside others that differ in one thing, and beside the usual way."""
    own = Way(bfloat16=measuring.bfloat16)
    ways = {
        "ours": own,
        "the usual step: NCHW, default optimizer": USUAL,
        "NCHW": replace(own, channels_last=False),
        "optimizer in a loop": replace(own, optimizer={"fused": False, "foreach": False}),
        "optimizer foreach": replace(own, optimizer={"fused": False, "foreach": True}),
    }
    if measuring.device == "cpu":
        ways["memory given back"] = replace(own, keeps_memory=False)
    # A GPU is not asked: that would start CUDA, and the contenders are forked from this process.
    if measuring.device == "cuda" or cpu_has_bfloat16():
        ways["float32" if own.bfloat16 else "bfloat16"] = replace(own, bfloat16=not own.bfloat16)
    compiled = measuring.settings.compiled
    if compiled or (compiled is None and measuring.device == "cuda"):
        ways["compiled"] = replace(own, compiled=True)
    job, steps = job_of(measuring, "step"), measuring.settings.steps
    contenders = [Contender(name, repeated(stepping, job, way, steps)) for name, way in ways.items()]
    found = measuring.contest(contenders, "step", ceiling=True)
    operations, _ = train_flops(measuring.config, len(measuring.splits.classes))
    limit = share(found["ours"], operations, found.pop(CEILING))
    ours = rates(found.pop("ours"))
    name = measuring.choices.get("model", "net")
    return [
        Row("step", name, ours, "images/s", other, rates(figures), limit if place == 0 else "")
        for place, (other, figures) in enumerate(found.items())
    ]


def stepping(job: Job, way: Way, steps: int) -> Callable[[], Figures]:
    """Some steps on one batch, in images/s."""
    device = job.device
    if way.keeps_memory:
        keep_memory()
    torch.manual_seed(job.config["seed"])
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    net: Any = job.net().to(device, memory_format=layout)  # type: ignore[call-overload]
    if way.compiled:
        net.compile()
    optimizer = job.optimizer(net.parameters(), **way.optimizer)
    node = job.config["data"]
    shape = (node["batch_size"], node["channels"], node["image_size"], node["image_size"])
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device, memory_format=layout)
    labels = torch.randint(0, len(job.splits.classes), shape[:1]).to(device)
    mean, std = job.constants()

    def step() -> torch.Tensor:
        pixels = normalize(images, mean, std) if way.channels_last else (images - mean) / std
        with torch.autocast(device, torch.bfloat16, enabled=way.bfloat16):
            loss = F.cross_entropy(net(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return lambda: {"rate": steps * shape[0] / elapsed(lambda: [step() for _ in range(steps)], device)}
