"""Suite `step`: images/s of an optimizer step on one batch in memory, by layout, optimizer, precision and compilation."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from alexlab.benchmark.context import BenchmarkContext
from alexlab.benchmark.interleave import Candidate, Figures, loop
from alexlab.benchmark.roofline import CEILING, per_round, share_of_ceiling, time_on_device, train_flops
from alexlab.benchmark.table import Row
from alexlab.benchmark.workload import Workload
from alexlab.distributed.hardware import cpu_has_bfloat16, keep_memory
from alexlab.training.preprocessing import normalize


@dataclass(frozen=True)
class StepVariant:
    """One implementation of an optimizer step; the defaults are ours.

    Args:
        channels_last: memory layout of weights and images; False is NCHW.
        optimizer: arguments that select the implementation of the optimizer.
        bfloat16: compute under autocast.
        compiled: use `torch.compile`.
        keep_memory: see `alexlab.distributed.hardware.keep_memory`.
    """

    channels_last: bool = True
    optimizer: dict[str, bool | None] = field(default_factory=lambda: {"fused": True})
    bfloat16: bool = False
    compiled: bool = False
    keep_memory: bool = True


USUAL = StepVariant(channels_last=False, optimizer={"fused": None}, keep_memory=False)


def step_variants(context: BenchmarkContext) -> dict[str, StepVariant]:
    """Return our step, the usual one, and some that differ from ours in one respect."""
    ours = StepVariant(bfloat16=context.bfloat16)
    variants = {
        "ours": ours,
        "the usual step: NCHW, default optimizer": USUAL,
        "NCHW": replace(ours, channels_last=False),
        "optimizer in a loop": replace(ours, optimizer={"fused": False, "foreach": False}),
        "optimizer foreach": replace(ours, optimizer={"fused": False, "foreach": True}),
    }
    if context.device == "cpu":
        variants["memory given back"] = replace(ours, keep_memory=False)
    # A GPU is not queried: that would start CUDA in the process that forks the candidates.
    if context.device == "cuda" or cpu_has_bfloat16():
        variants["float32" if ours.bfloat16 else "bfloat16"] = replace(ours, bfloat16=not ours.bfloat16)
    compiled = context.settings.compiled
    if compiled or (compiled is None and context.device == "cuda"):
        variants["compiled"] = replace(ours, compiled=True)
    return variants


def suite(context: BenchmarkContext) -> list[Row]:
    """Compare our step with each other variant."""
    workload, num_steps = context.workload("step"), context.settings.steps
    candidates = [
        Candidate(name, loop(prepare_steps, workload, variant, num_steps))
        for name, variant in step_variants(context).items()
    ]
    results = context.interleave(candidates, "step", ceiling=True)
    operations, _ = train_flops(context.config, len(context.splits.classes))
    limit = share_of_ceiling(results["ours"], operations, results.pop(CEILING))
    values = per_round(results.pop("ours"))
    return [
        Row("step", context.model, values, "images/s", name, per_round(figures), limit if number == 0 else "")
        for number, (name, figures) in enumerate(results.items())
    ]


def prepare_steps(workload: Workload, variant: StepVariant, num_steps: int) -> Callable[[], Figures]:
    """Return a function that takes optimizer steps on one batch, measured in images/s."""
    device = workload.device
    if variant.keep_memory:
        keep_memory()
    torch.manual_seed(workload.config["seed"])
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    net: Any = workload.net().to(device, memory_format=layout)  # type: ignore[call-overload]
    if variant.compiled:
        net.compile()
    optimizer = workload.optimizer(net.parameters(), **variant.optimizer)
    node = workload.config["data"]
    shape = (node["batch_size"], node["channels"], node["image_size"], node["image_size"])
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device, memory_format=layout)
    labels = torch.randint(0, len(workload.splits.classes), shape[:1]).to(device)
    mean, std = workload.mean_std_uint8()

    def step() -> torch.Tensor:
        pixels = normalize(images, mean, std) if variant.channels_last else (images - mean) / std
        with torch.autocast(device, torch.bfloat16, enabled=variant.bfloat16):
            loss = F.cross_entropy(net(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def work() -> Figures:
        elapsed_s = time_on_device(lambda: [step() for _ in range(num_steps)], device)
        return {"rate": num_steps * shape[0] / elapsed_s}

    return work
