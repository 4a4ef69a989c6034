"""Whole epochs on generated photographs, compared with other loops and with the step alone; and decoding of JPEG files."""

import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torchvision.io import decode_jpeg

from alexlab.benchmark.baselines import torchvision_reference
from alexlab.benchmark.epochs import ours
from alexlab.benchmark.gpu.context import GpuContext
from alexlab.benchmark.gpu.results import FAILED, Check, goal
from alexlab.benchmark.gpu.steps import repeat
from alexlab.benchmark.interleave import Candidate, Figures, interleave, loop
from alexlab.benchmark.roofline import per_round, time_on_device
from alexlab.benchmark.step import StepVariant, prepare_steps
from alexlab.benchmark.stock_lightning import stock_lightning
from alexlab.benchmark.table import Row
from alexlab.benchmark.workload import Workload
from alexlab.data.decode import decode_bytes
from alexlab.distributed.hardware import num_cores

JPEG, PACKED, DEVICE = "ours, JPEG", "ours, packed", "ours, data.cache=device"
REFERENCE, LIGHTNING, STEP = "torchvision's reference, --amp", "stock Lightning, packed", "the step on a fixed batch"
TURN_S = 60.0  # a longer turn fails its candidate
LABELS = {"train": "training", "val": "validation", "epoch": "whole epochs"}
DECODED = 256  # images per measurement of the decoders


def measure_epochs(context: GpuContext) -> Iterator[Row | Check]:
    """Time epochs with a DataLoader worker per core; the goals compare their medians."""
    net, changes = next(iter(context.settings.nets.items()))
    sources = {
        JPEG: ("jpeg", None, ours),
        REFERENCE: ("jpeg", None, torchvision_reference),
        PACKED: ("packed", "packed", ours),
        LIGHTNING: ("packed", "packed", stock_lightning),
        DEVICE: ("packed", "device", ours),
    }
    candidates = []
    workload = None
    for number, (name, (images, cache, train)) in enumerate(sources.items()):
        workload = _workload(
            context, images, {"model": {**context.config["model"], **changes}, "data.cache": cache}, number
        )
        candidates.append(Candidate(name, partial(train, workload)))
    assert workload is not None
    bfloat16 = workload.config["trainer"]["precision"] == "bf16-mixed"
    step = loop(prepare_steps, workload, StepVariant(bfloat16=bfloat16), context.settings.steps)
    candidates.append(Candidate(STEP, step))
    failures: dict[str, str] = {}
    results = interleave(
        candidates,
        num_rounds=context.settings.rounds,
        log_dir=context.out_dir / "logs",
        title="epochs",
        turn_s=TURN_S,
        failures=failures,
    )
    for message in failures.values():
        yield Check("whole epochs", message, "a measurement", FAILED)
    label = f"{net}, batch {context.settings.epoch_batch_size}"
    yield from epoch_rows(results, label)
    yield from epoch_goals(results)


def _workload(context: GpuContext, images: str, changes: Mapping[str, Any], number: int) -> Workload:
    data = {"data.batch_size": context.settings.epoch_batch_size, "data.num_workers": num_cores()}
    return context.benchmark(images, {**data, **changes}).workload(f"epochs {number}")


def epoch_rows(results: Mapping[str, list[Figures]], label: str) -> Iterator[Row]:
    """Yield the rows of each candidate that has finished, compared with the reference where there is one."""
    baseline = results.get(REFERENCE, [])
    if results.get(STEP):
        yield Row("epochs", f"{label}: {STEP}", per_round(results[STEP]), "images/s")
    for name, figures in results.items():
        if name == STEP or not figures:
            continue
        for figure, what in LABELS.items():
            is_compared = name != REFERENCE and len(baseline) == len(figures)
            others = per_round(baseline, figure) if is_compared else ()
            values = per_round(figures, figure)
            yield Row("epochs", f"{label}: {what}: {name}", values, "images/s", REFERENCE if others else "", others)


def epoch_goals(results: Mapping[str, list[Figures]]) -> Iterator[Check]:
    """Yield the goals whose candidates have finished."""

    def median(name: str, figure: str) -> float:
        return statistics.median(per_round(results[name], figure))

    for name, share in ((DEVICE, 0.95), (PACKED, 0.9)):
        if results.get(name) and results.get(STEP):
            yield goal(f"training: {name} / {STEP}", median(name, "train") / median(STEP, "rate"), share)
    for name in (PACKED, DEVICE):
        if results.get(name) and results.get(REFERENCE):
            ratio = median(name, "epoch") / median(REFERENCE, "epoch")
            yield goal(f"whole epochs: {name} / {REFERENCE}", ratio, 5)


def measure_decoding(context: GpuContext) -> Iterator[Row | Check]:
    """Compare decoding of JPEG files on the device with our decoder on one core and on all of them."""
    paths = sorted((context.work_dir / "photographs").rglob("*.jpg"))[:DECODED]
    contents = [path.read_bytes() for path in paths]
    encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    settings = context.settings
    one = repeat(_timer(lambda: [decode_bytes(content) for content in contents], len(contents), "cpu"), settings)
    yield Row("decoding", "JPEG files of 500 x 375: our decoder, one core", one, "images/s")
    with ThreadPoolExecutor(num_cores()) as pool:
        work = _timer(lambda: list(pool.map(decode_bytes, contents)), len(contents), "cpu")
        threads = repeat(work, settings)
    what = f"JPEG files of 500 x 375: our decoder, {num_cores()} threads"
    yield Row("decoding", what, threads, "images/s", "one core", one)
    work = _timer(lambda: decode_jpeg(encoded, device=context.device), len(encoded), context.device)
    name = f"JPEG files of 500 x 375: torchvision.io.decode_jpeg on {context.device}"
    yield Row("decoding", name, repeat(work, settings), "images/s", "our decoder, all cores", threads)


def _timer(work: Callable[[], Any], num_images: int, device: str) -> Callable[[], Figures]:
    def timed() -> Figures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torchvision 0.29 refers to TorchCodec
            return {"rate": num_images / time_on_device(work, device)}

    return timed
