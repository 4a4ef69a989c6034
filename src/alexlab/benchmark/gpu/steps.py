"""Images/s of optimizer steps by net, batch size, precision, layout, execution and optimizer."""

import gc
import statistics
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from alexlab.benchmark.baselines import TorchvisionReference
from alexlab.benchmark.context import BenchmarkContext
from alexlab.benchmark.gpu.config import GpuConfig
from alexlab.benchmark.gpu.context import GpuContext
from alexlab.benchmark.gpu.results import FAILED, NEEDS_CUDA, Check, goal
from alexlab.benchmark.interleave import Figures
from alexlab.benchmark.roofline import matrix_products, memory_copies, set_tf32, time_on_device, train_flops
from alexlab.benchmark.step import StepVariant, prepare_steps
from alexlab.benchmark.table import Row

Measuring = Generator[Row | Check, None, list[float]]  # yields results and returns images/s

OURS = StepVariant(bfloat16=True, tf32=True)
# Type of the matrices, and whether TensorFloat-32 is allowed.
PEAKS = {"float32": (torch.float32, False), "TF32": (torch.float32, True), "bfloat16": (torch.bfloat16, True)}
REFERENCE = "torchvision's reference, --amp"
STEP_GOAL = 1.25  # times the images/s of the reference
# At every batch size, each differing from ours in one respect.
EVERYWHERE = {
    "TF32": replace(OURS, bfloat16=False),
    "NCHW": replace(OURS, channels_last=False),
    "CUDA graph of the step": replace(OURS, graph=True),
}
ONCE = {
    "float32": replace(OURS, bfloat16=False, tf32=False),
    "float16 with gradient scaling": replace(OURS, bfloat16=False, float16=True),
    "optimizer foreach": replace(OURS, optimizer={"fused": False, "foreach": True}),
    "optimizer in a loop": replace(OURS, optimizer={"fused": False, "foreach": False}),
    "compiled": replace(OURS, compiled=True),
    "compiled, reduce-overhead": replace(OURS, compiled=True, compile_mode="reduce-overhead"),
}


def measure_machine(context: GpuContext) -> Iterator[Row | dict[str, Any]]:
    """Describe the device and measure its matrix products and copies."""
    yield {"gpu": torch.cuda.get_device_name() if context.on_gpu else None, "device": context.device}
    for name, (dtype, tf32) in PEAKS.items():
        yield Row("machine", f"matrix products, {name}", peak(context, dtype, tf32), "GFLOP/s")
    yield Row("machine", "copies in memory", repeat(memory_copies(context.device), context.settings), "GB/s")


def peak(context: GpuContext, dtype: torch.dtype, tf32: bool) -> list[float]:
    """Return GFLOP/s of large matrix products."""
    set_tf32(tf32)
    return repeat(matrix_products(dtype, context.device), context.settings)


def repeat(work: Callable[[], Figures], settings: GpuConfig) -> list[float]:
    """Return the rate of each round, after one round of warm-up."""

    def measure_round() -> float:
        rates, end_s = [work()["rate"]], time.perf_counter() + settings.round_s
        while time.perf_counter() < end_s:
            rates.append(work()["rate"])
        return statistics.harmonic_mean(rates)  # the work is the same each time

    measure_round()
    return [measure_round() for _ in range(settings.rounds)]


def measure_steps(context: GpuContext, net: str) -> Iterator[Row | Check]:
    """Measure a net at every batch size, one variant after the other, and the combination of the winners.

    Each variant is compared with our default step in the same process; a GPU without other users is steady enough for that.
    """
    peaks = {name: statistics.median(peak(context, *arguments)) for name, arguments in PEAKS.items()}
    middle = context.settings.epoch_batch_size
    best = OURS  # until the middle batch size, the first one, has shown the winners
    sizes = sorted(context.settings.batch_sizes, key=lambda size: size != middle)
    for batch_size in sizes:
        changes = {"model": {**context.config["model"], **context.settings.nets[net]}, "data.batch_size": batch_size}
        meter = StepMeter(context, context.benchmark("check", changes), f"{net}, batch {batch_size}", peaks)
        ours = yield from meter.measure("bfloat16, channels last, fused, eager", OURS)
        variants = EVERYWHERE | (ONCE if batch_size == middle else {})
        for name, variant in variants.items():
            yield from meter.measure(name, variant)
        reference = yield from meter.measure_reference()
        if batch_size == middle:
            best = meter.combination()
        if best not in (OURS, *variants.values()):
            yield from meter.measure(f"winners combined: {describe(best)}", best)
        if ours and reference:
            ratio = statistics.median(ours) / statistics.median(reference)
            yield goal(f"{net}, batch {batch_size}: our step / {REFERENCE}", ratio, STEP_GOAL)


class StepMeter:
    """Measurements of one net at one batch size.

    Args:
        context: the suite.
        benchmark: benchmark of the net.
        label: net and batch size.
        peaks: GFLOP/s of matrix products by precision.
    """

    def __init__(self, context: GpuContext, benchmark: BenchmarkContext, label: str, peaks: dict[str, float]) -> None:
        self.context, self.label, self.peaks = context, label, peaks
        self.workload = benchmark.workload("steps")
        self.flops = train_flops(benchmark.config, len(benchmark.splits.classes))[0]
        self.rates: dict[str, list[float]] = {}
        self.variants: dict[str, StepVariant] = {}
        self.ours = ""

    def measure(self, name: str, variant: StepVariant) -> Measuring:
        """Yield the row of a variant and return its images/s; the first one is ours."""
        if variant.graph and not self.context.on_gpu:
            yield Check(f"{self.label}: {name}", "not measured", "CUDA graphs", NEEDS_CUDA)
            return []
        half = variant.bfloat16 or variant.float16
        precision = "bfloat16" if half else "TF32" if variant.tf32 else "float32"
        self.variants[name] = variant
        rates = yield from self._row(name, precision, lambda: prepare_steps(self.workload, variant, self._steps))
        if variant.compiled:
            torch.compiler.reset()
        return rates

    def measure_reference(self) -> Measuring:
        """Yield the row of torchvision's reference loop on one batch of the device, and return its images/s."""
        set_tf32(None)
        return (yield from self._row(REFERENCE, "bfloat16", lambda: prepare_reference(self, self._steps)))

    @property
    def _steps(self) -> int:
        return self.context.settings.steps

    def _row(self, name: str, precision: str, prepare: Callable[[], Callable[[], Figures]]) -> Measuring:
        try:
            self.rates[name] = repeat(prepare(), self.context.settings)
        except Exception as error:  # such as too little memory; the other variants are still measured
            traceback.print_exc()
            message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            yield Check(f"{self.label}: {name}", message, "a measurement", FAILED)
            return []
        finally:
            gc.collect()
            if self.context.on_gpu:
                torch.cuda.empty_cache()
        self.ours = self.ours or name
        share = statistics.median(self.rates[name]) * self.flops / 1e9 / self.peaks[precision]
        baseline = () if name == self.ours else self.rates[self.ours]
        limit = f"{100 * share:.0f} % of matrix products in {precision}"
        what = f"{self.label}: {name}"
        yield Row("step", what, self.rates[name], "images/s", self.ours if baseline else "", baseline, limit)
        return self.rates[name]

    def combination(self) -> StepVariant:
        """Return the combination of the fastest layout, optimizer, execution and precision of those measured."""
        best = OURS
        for fields in (
            ("channels_last",),
            ("optimizer",),
            ("compiled", "compile_mode", "graph"),
            ("bfloat16", "tf32"),
        ):
            names = self._differing(fields)
            if names:  # none if all of them failed
                variant = self.variants[max(names, key=self._rate)]
                best = replace(best, **{field: getattr(variant, field) for field in fields})
        return best

    def _differing(self, fields: Sequence[str]) -> list[str]:
        """Return the measured variants that equal ours in all other fields."""
        return [
            name
            for name, variant in self.variants.items()
            if name in self.rates and replace(variant, **{field: getattr(OURS, field) for field in fields}) == OURS
        ]

    def _rate(self, name: str) -> float:
        return statistics.median(self.rates[name])


def prepare_reference(meter: StepMeter, num_steps: int) -> Callable[[], Figures]:
    """Return a function that takes steps of torchvision's reference loop on one batch on the device, measured in images/s."""
    workload = meter.workload
    reference = TorchvisionReference(workload)
    node = workload.config["data"]
    shape = (node["batch_size"], node["channels"], node["image_size"], node["image_size"])
    images = torch.randn(shape, device=workload.device)
    labels = torch.randint(0, len(workload.splits.classes), shape[:1]).to(workload.device)
    batches: Any = [(images, labels)] * num_steps
    reference.train_loader = batches

    def work() -> Figures:
        elapsed_s = time_on_device(lambda: reference.train(0), workload.device)
        return {"rate": num_steps * shape[0] / elapsed_s}

    return work


def describe(variant: StepVariant) -> str:
    """Return precision, layout, optimizer and execution of a variant as text."""
    execution = "CUDA graph" if variant.graph else "eager"
    if variant.compiled:
        execution = f"compiled{f', {variant.compile_mode}' if variant.compile_mode else ''}"
    optimizer = "fused" if variant.optimizer.get("fused") else "foreach" if variant.optimizer.get("foreach") else "loop"
    precision = "bfloat16" if variant.bfloat16 else "TF32" if variant.tf32 else "float32"
    return f"{precision}, {'channels last' if variant.channels_last else 'NCHW'}, {optimizer}, {execution}"
