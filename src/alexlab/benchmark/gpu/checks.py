"""Checks that training on a device computes what it should: steps, crops, resumed runs, NaN."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from alexlab.benchmark.gpu import callbacks
from alexlab.benchmark.gpu.context import GpuContext
from alexlab.benchmark.gpu.results import FAILED, NEEDS_CUDA, PASSED, Check, equal, within
from alexlab.benchmark.roofline import set_tf32
from alexlab.config import allowlist
from alexlab.data.transforms import RandomCropView
from alexlab.errors import NumericError
from alexlab.records.layout import LAST
from alexlab.records.safe_load import load_file

# Relative errors: the norm of the difference divided by the norm. Where ReLU or max pooling meet nearly equal values, rounding
# decides which one gets the gradient: 32 bits differ from 64 bits on one CPU by up to 4e-3 in a layer of AlexNet, and by 4e-6
# without them. EXACT therefore holds for the smooth net, layer by layer, and the others for all gradients together; in 16 bits
# torchvision's AlexNet with 8 to 64 random images differs by 0.04 to 0.08 (bfloat16) and by 0.014 to 0.019 (float16) on a CPU.
SMOOTH = {"model.activation": "tanh", "model.pool_kernels": [1, 1, 1]}
EXACT, TOLERANCES = 1e-4, {"32-true": 0.01, "bf16-mixed": 0.15, "16-mixed": 0.05}
RESIZE_TOLERANCE = 2  # levels of 256, see alexlab.data.cache.on_device


def check_steps(context: GpuContext) -> Iterator[Check]:
    """Compare the first step on the device with that on the CPU in 32 bits, in each precision."""
    set_tf32(False)
    on_cpu = {"trainer.accelerator": "cpu", "trainer.devices": 1}
    what = "one step with trainer.precision={}: error of the gradients"
    expected = record_step(context, "smooth_cpu", {**SMOOTH, **on_cpu})
    found = record_step(context, "smooth", SMOOTH)
    yield within(f"{what.format('32-true')}, tanh and no max pooling", largest_error(found, expected), EXACT)
    expected = record_step(context, "step_cpu", on_cpu)
    for precision, tolerance in TOLERANCES.items():
        if precision == "16-mixed" and not context.on_gpu:  # Lightning has no float16 on the CPU
            yield Check(what.format(precision), "not measured", f"at most {tolerance:g}", NEEDS_CUDA)
            continue
        found = record_step(context, f"step_{precision}", {"trainer.precision": precision})
        yield within(what.format(precision), total_error(found, expected), tolerance)


def check_compilation(context: GpuContext) -> Iterator[Check]:
    """Compare the first step with `compile.enabled` with that without."""
    set_tf32(False)
    expected = record_step(context, "step_eager", SMOOTH)
    found = record_step(context, "step_compiled", {**SMOOTH, "compile.enabled": True})
    what = "one step with compile.enabled=true: error of the gradients, tanh and no max pooling"
    yield within(what, largest_error(found, expected), EXACT)


def record_step(context: GpuContext, name: str, changes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Train for one step and return the loss and the gradients, on the CPU."""
    path = context.work_dir / f"{name}.pt"
    recorder = trusted_node(callbacks.StepRecorder, path=str(path))
    context.fit(name, {**changes, "callbacks": {"recorder": recorder}, "trainer.max_steps": 1})
    found: dict[str, Tensor] = torch.load(path, weights_only=True)
    return found


def trusted_node(callback: type, **arguments: Any) -> dict[str, Any]:
    """Return the config node of a callback of this package."""
    allowlist.trust(callback.__module__)
    return {"_target_": f"{callback.__module__}.{callback.__name__}", **arguments}


def largest_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest relative error of the loss and of the gradients of a layer; NaN if a tensor is missing."""
    layers = dict.fromkeys(name.rpartition(".")[0] for name in expected)
    parts = [
        [
            {name: value for name, value in each.items() if name.rpartition(".")[0] == layer}
            for each in (found, expected)
        ]
        for layer in layers
    ]
    return torch.tensor([total_error(*part) for part in parts]).max().item()  # NaN if any of them is


def total_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the relative error of all tensors as one vector; NaN if a tensor is missing."""
    if found.keys() != expected.keys():
        return float("nan")
    vectors = [torch.cat([each[name].double().flatten() for name in expected]) for each in (found, expected)]
    return ((vectors[0] - vectors[1]).norm() / vectors[1].norm()).item()


def check_crops(context: GpuContext) -> Iterator[Check]:
    """Compare the training batches of `data.cache=device` with those of `data.cache=packed` on the CPU."""
    size = context.config["data"]["image_size"]
    flip = v2.RandomHorizontalFlip()
    recipes: dict[str, tuple[Any, int]] = {
        "crop and flip": (v2.Compose([RandomCropView(size, square=True), flip]), 0),
        "random resized crop and flip": (
            v2.Compose([v2.RandomResizedCrop(size, antialias=True), flip]),
            RESIZE_TOLERANCE,
        ),
    }
    for name, (transform, tolerance) in recipes.items():
        on_cpu, on_device = (train_batches(context, cache, transform) for cache in ("packed", "device"))
        differences = [
            (expected.int() - found.cpu().int()).abs().max().item()
            for (expected, labels), (found, found_labels) in zip(on_cpu, on_device, strict=True)
            if torch.equal(labels, found_labels.cpu())
        ]
        yield equal(f"data.cache=device, {name}: labels", len(differences), len(on_cpu), "batches")
        yield within(f"data.cache=device, {name}: difference in levels of 256", max(differences), tolerance)


def train_batches(context: GpuContext, cache: str, transform: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the training batches of an epoch, of packed images on the CPU or of a pack on the device."""
    benchmark = context.benchmark("check", {"data.cache": cache, "data.num_workers": 0, "data.batch_size": 32})
    workload = benchmark.workload("crops")
    datamodule = replace(workload, device=context.device if cache == "device" else "cpu").datamodule()
    datamodule.train_transform = transform
    return list(datamodule.train_dataloader())


def check_resumed_runs(context: GpuContext) -> Iterator[Check]:
    """Resume the same run twice with `trainer.deterministic=true`; compare with one another and with a run that never stopped."""
    changes = {
        "trainer.deterministic": True,
        "trainer.benchmark": None,
        "callbacks": {"checkpoint": context.config["callbacks"]["checkpoint"]},
    }
    whole = context.fit("whole", {**changes, "trainer.max_epochs": 3})
    half = context.fit("half", {**changes, "trainer.max_epochs": 1})
    shutil.copytree(half, half.with_name("again"))
    expected, *resumed = (
        tensors(load_file(run_dir / LAST))
        for run_dir in (
            whole,
            *(context.fit(name, {**changes, "trainer.max_epochs": 3}, resumed=True) for name in ("half", "again")),
        )
    )
    for name, other in (("the second resumed run", resumed[1]), ("a run that never stopped", expected)):
        same = sum(torch.equal(value, other[key]) for key, value in resumed[0].items())
        yield equal(f"trainer.deterministic=true: a resumed run and {name}", same, len(expected), "tensors")


def tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights and optimizer state of a checkpoint by name."""
    (optimizer,) = checkpoint["optimizer_states"]
    states = {
        f"optimizer.{index}.{name}": value
        for index, state in optimizer["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    return {**checkpoint["state_dict"], **states}


def check_nan(context: GpuContext) -> Iterator[Check]:
    """Poison the weights in the second epoch: the run must stop, and its checkpoint must stay that of the first."""
    steps = 4  # per epoch
    changes = {
        "callbacks": {
            "checkpoint": context.config["callbacks"]["checkpoint"],
            "poison": trusted_node(callbacks.Poison, step=steps + 1),
        },
        "trainer.max_epochs": 3,
        "trainer.log_every_n_steps": 2,
    }
    stopped = "it did not stop"
    try:
        context.fit("nan", changes)
    except NumericError as error:
        stopped = str(error)
    outcome = PASSED if f"at step {steps + 1} " in stopped else FAILED
    yield Check(f"NaN at step {steps + 1} stops the run", stopped, "an error that names the step", outcome)
    checkpoint = load_file(context.work_dir / "runs/nan" / LAST)
    finite = all(value.isfinite().all() for value in tensors(checkpoint).values() if value.is_floating_point())
    step = checkpoint["global_step"]
    outcome = PASSED if finite and step == steps else FAILED
    yield Check("the last checkpoint before NaN", f"step {step}", f"step {steps}, finite weights", outcome)


def check_synchronization(context: GpuContext) -> Iterator[Check]:
    """Count the calls that wait for the device between two logging points of a run with the default callbacks and loggers."""
    path = context.work_dir / "synchronization.json"
    changes = {
        "callbacks": {
            **context.config["callbacks"],
            "counter": trusted_node(callbacks.SynchronizationCounter, path=str(path)),
        },
        "logger": context.config["logger"],
        "data.cache": "device",
        "data.batch_size": context.settings.check_images // 32,
        "data.num_workers": 1,
        "trainer.precision": context.config["trainer"]["precision"],
        "trainer.log_every_n_steps": 10,
    }
    context.fit("synchronization", changes)
    found = read_json(path)
    calls = sum(found["calls"].values())
    names = f": {', '.join(found['calls'])}" if calls else ""
    measured = f"{calls} in {found['steps']} steps, among {found['events']:,} events{names}"
    outcome = (FAILED if calls else PASSED) if context.on_gpu else NEEDS_CUDA
    yield Check("host synchronizations between two logging points", measured, "0", outcome)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
