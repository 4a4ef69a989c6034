"""Suite `step`: images/s of an optimizer step on one batch in memory, by layout, optimizer, precision and compilation."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from alexlab.benchmark.context import BenchmarkContext
from alexlab.benchmark.interleave import Candidate, Figures, loop
from alexlab.benchmark.roofline import CEILING, per_round, set_tf32, share_of_ceiling, time_on_device, train_flops
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
        float16: compute under autocast, with gradient scaling.
        tf32: allow TensorFloat-32 on a GPU; None for PyTorch's default, which allows it in convolutions.
        compiled: use `torch.compile`.
        compile_mode: mode of `torch.compile`.
        graph: capture the whole step in a CUDA graph and replay it.
        keep_memory: see `alexlab.distributed.hardware.keep_memory`.
    """

    channels_last: bool = True
    optimizer: dict[str, bool | None] = field(default_factory=lambda: {"fused": True})
    bfloat16: bool = False
    float16: bool = False
    tf32: bool | None = None
    compiled: bool = False
    compile_mode: str | None = None
    graph: bool = False
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
    step = build_step(workload, variant)
    if variant.graph:
        step = capture(step)

    def work() -> Figures:
        elapsed_s = time_on_device(lambda: [step() for _ in range(num_steps)], workload.device)
        return {"rate": num_steps * workload.config["data"]["batch_size"] / elapsed_s}

    return work


def build_step(workload: Workload, variant: StepVariant) -> Callable[[], object]:
    """Return a function that takes one optimizer step on a batch of random images."""
    device = workload.device
    if variant.keep_memory:
        keep_memory()
    set_tf32(variant.tf32)
    torch.backends.cudnn.benchmark = True  # as in our training on a GPU
    torch.manual_seed(workload.config["seed"])
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    net: Any = workload.net().to(device, memory_format=layout)  # type: ignore[call-overload]
    if variant.compiled:
        net.compile(mode=variant.compile_mode, backend=workload.config["compile"]["backend"])
    optimizer = workload.optimizer(net.parameters(), **variant.optimizer)
    scaler = torch.amp.GradScaler(device, enabled=variant.float16)
    node = workload.config["data"]
    shape = (node["batch_size"], node["channels"], node["image_size"], node["image_size"])
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device, memory_format=layout)
    labels = torch.randint(0, len(workload.splits.classes), shape[:1]).to(device)
    mean, std = workload.mean_std_uint8()
    dtype = torch.float16 if variant.float16 else torch.bfloat16

    def step() -> None:
        pixels = normalize(images, mean, std) if variant.channels_last else (images - mean) / std
        with torch.autocast(device, dtype, enabled=variant.bfloat16 or variant.float16):
            loss = F.cross_entropy(net(pixels), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def capture(step: Callable[[], object], *, num_warmup: int = 3) -> Callable[[], object]:
    """Return a function that replays a step as a CUDA graph, captured after a few eager steps on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(num_warmup):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
