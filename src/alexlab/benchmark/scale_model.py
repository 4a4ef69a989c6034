"""How long a training takes, and what it costs, on devices that one does not have: arithmetic from measured rates.

The rates of the pieces are measured here, or given as keys of the `arithmetic` node; the sum is checked beside a training on
one and on two ranks of this machine.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from alexlab.benchmark.contest import Contender, Figures, repeated
from alexlab.benchmark.fit import job_of, ours
from alexlab.benchmark.loops import Job
from alexlab.benchmark.machine import elapsed, rates
from alexlab.benchmark.measuring import Measuring
from alexlab.benchmark.rows import Row
from alexlab.benchmark.scale import epochs_of
from alexlab.benchmark.settings import Arithmetic
from alexlab.benchmark.step import Way, stepping
from alexlab.launch import Limits, launch
from alexlab.machine import cores, keep_memory, num_cores

BUCKET = 25 << 20  # bytes that DDP sends at once, its default
BACKWARD = 2 / 3  # of a step is the backward pass, during which gradients can be sent


@dataclass(frozen=True)
class Forecast:
    """What a training comes to on some devices.

    Args:
        rate: images/s of the training, of all devices.
        hours, cost: of the whole training.
        parts: seconds that each piece takes of a step, if it were alone.
        limit: the piece that a step waits for.
    """

    rate: float
    hours: float
    cost: float
    parts: dict[str, float]
    limit: str


def forecast(given: Arithmetic, num_devices: int, *, gradient_mb: float) -> Forecast:
    """Reckons a training whose rates are all given.

    A step waits for the slowest of the loader, the disk and the device; the device computes, and then waits for what of the
    ring's 2 (n - 1) / n times the gradients is not hidden behind its backward pass. Where loader and net share the cores,
    their times add up.
    """
    assert given.step and given.validation and given.loader and given.cores and given.network_gb_s
    net_s, optimizer_s = given.batch / given.step, given.optimizer_s or 0.0
    loader_s = given.batch / (given.loader * given.cores)
    on_node = min(num_devices, given.per_node)
    disk_s = given.batch * on_node * given.image_kb / 1e3 / given.disk_mb_s
    network_s = 2 * (num_devices - 1) / num_devices * gradient_mb / 1e3 / given.network_gb_s
    waits_s = max(0.0, network_s - (given.overlap or 0.0) * BACKWARD * net_s)
    on_device = {"net": net_s, "optimizer": optimizer_s, "network": waits_s}
    parts = {**on_device, "network": network_s, "loader": loader_s, "disk": disk_s}
    together = {**on_device, "loader": loader_s} if given.shared else on_device
    device_s = sum(together.values())
    step_s = max(device_s, loader_s, disk_s)
    waited_for = together if step_s == device_s else {"loader": loader_s, "disk": disk_s}
    limit = max(waited_for, key=lambda name: waited_for[name])
    steps = given.images // (given.batch * num_devices)
    epoch_s = steps * step_s + given.val_images / (given.validation * num_devices) + given.checkpoint_s
    hours = given.epochs * epoch_s / 3600
    return Forecast(given.batch * num_devices / step_s, hours, hours * num_devices * given.price, parts, limit)


def suite(measuring: Measuring) -> list[Row]:
    """The pieces, the check on one and two ranks, and the forecast; each round of the measurement reckons by itself."""
    found = pieces(measuring)
    gradient_mb = 4 * num_parameters(job_of(measuring, "size")) / 1e6
    rows = [Row("scale-model", f"measured: {name}", rates(found[name]), UNITS[name]) for name in UNITS if name in found]
    rounds = [
        here(measuring, {name: figures[index] for name, figures in found.items()})
        for index in range(measuring.settings.pairs)
    ]
    for ranks, name in WHOLES.items():
        if name in found:
            reckoned = [forecast(each[ranks], ranks, gradient_mb=gradient_mb).rate for each in rounds]
            rows.append(
                Row(
                    "scale-model",
                    f"reckoned: training, {ranks} rank(s)",
                    reckoned,
                    "images/s",
                    "measured",
                    rates(found[name], "train"),
                )
            )
    given = measuring.arithmetic
    missing = [name for name in LEFT_TO_THE_MACHINE if getattr(given, name) is None]
    for count in given.devices:
        told = [
            forecast(
                replace(given, **{name: getattr(each[1], name) for name in missing}), count, gradient_mb=gradient_mb
            )
            for each in rounds
        ]
        last = told[len(told) // 2]
        parts = ", ".join(f"{name} {1e3 * value:,.0f}" for name, value in last.parts.items())
        cost = f"; cost {last.cost:,.0f}" if given.price else ""
        what = f"{given.epochs} epochs of {given.images:,} images, {count} x {given.batch}"
        rows.append(
            Row("scale-model", what, [each.hours for each in told], "h", limit=f"{last.limit} (ms: {parts}){cost}")
        )
    return rows


def here(measuring: Measuring, figures: Mapping[str, Figures]) -> dict[int, Arithmetic]:
    """What one round has measured, as the numbers of a training on one rank, and on two which share the cores."""
    on_cpu, batch = measuring.device == "cpu", measuring.config["data"]["batch_size"]
    optimizer_s = figures["optimizer"]["rate"]
    one = Arithmetic(
        images=len(measuring.splits.train),
        val_images=0,
        epochs=1,
        batch=batch,
        step=without(figures["step"]["rate"], optimizer_s, batch),
        optimizer_s=optimizer_s,
        validation=figures["validation"]["rate"],
        loader=figures["loader"]["rate"],
        cores=num_cores(),
        disk_mb_s=1e9,  # the files are in memory
        network_gb_s=figures.get("exchange", {"rate": 1.0})["rate"],
        overlap=0.0 if on_cpu else 1.0,
        shared=on_cpu,
        checkpoint_s=0.0,
    )
    if "step, two at once" not in figures:
        return {1: one}
    step = without(figures["step, two at once"]["rate"], optimizer_s, batch // 2)
    return {1: one, 2: replace(one, batch=batch // 2, step=step, cores=num_cores() / 2)}


WHOLES = {1: "trained on 1 rank", 2: "trained on 2 ranks"}
LEFT_TO_THE_MACHINE = ("step", "optimizer_s", "validation", "loader", "cores", "network_gb_s", "overlap", "shared")
UNITS = dict.fromkeys(("step", "loader", "validation", "step, two at once"), "images/s") | {
    "optimizer": "s",
    "exchange": "GB/s",
}


def without(rate: float, optimizer_s: float, batch: int) -> float:
    """Images/s of a step, if there were no optimizer."""
    return batch / max(1e-9, batch / rate - optimizer_s)


def pieces(measuring: Measuring) -> dict[str, list[Figures]]:
    """The rates of this machine's pieces and of whole trainings, in turn."""
    job = job_of(measuring, "pieces")
    way = Way(bfloat16=measuring.bfloat16)
    in_process = replace(job, config={**job.config, "data": {**job.config["data"], "num_workers": 0}})
    contenders = [
        Contender("step", repeated(stepping, job, way, measuring.settings.steps)),
        Contender("optimizer", repeated(updating, job, measuring.settings.steps)),
        Contender("loader", repeated(reading, in_process), cores()[:1]),
        Contender("validation", repeated(evaluating, job, measuring.settings.steps)),
        Contender(WHOLES[1], partial(ours, job_of(measuring, "arithmetic", 1))),
    ]
    if measuring.device == "cpu" and num_cores() > 1:
        exchanged = repeated(two_at_once, job, way, measuring.settings.steps)
        contenders.append(Contender("step, two at once", exchanged))
        contenders.append(Contender(WHOLES[2], partial(ours, job_of(measuring, "arithmetic", 2))))
    found = measuring.contest(contenders, "scale-model: the pieces and the whole")
    if "step, two at once" in found:
        found["exchange"] = [{"rate": each["exchange"]} for each in found["step, two at once"]]
    return found


def reading(job: Job) -> Callable[[], Figures]:
    """Images/s of the training loader on one core."""
    torch.set_num_threads(1)  # more would wait for each other
    return epochs_of(job)


def updating(job: Job, steps: int) -> Callable[[], Figures]:
    """Seconds of an optimizer's step."""
    keep_memory()
    net: Any = job.net().to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = job.optimizer(net.parameters(), fused=True)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return lambda: {"rate": elapsed(lambda: [optimizer.step() for _ in range(steps)], job.device) / steps}


def num_parameters(job: Job) -> int:
    with torch.device("meta"):
        return sum(value.numel() for value in job.net().parameters())


def evaluating(job: Job, steps: int) -> Callable[[], Figures]:
    """Images/s of the net in 32 bits, without gradients, as a validation takes its scores."""
    keep_memory()
    net: Any = job.net().to(job.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    node = job.config["data"]
    shape = (node["batch_size"], node["channels"], node["image_size"], node["image_size"])
    images = torch.rand(shape).to(job.device, memory_format=torch.channels_last)

    def work() -> Figures:
        with torch.inference_mode():
            return {"rate": steps * shape[0] / elapsed(lambda: [net(images) for _ in range(steps)], job.device)}

    return work


def two_at_once(job: Job, way: Way, steps: int) -> Callable[[], Figures]:
    """Images/s of each of two ranks that step beside each other without a word, and GB/s of averaging their gradients."""
    half = {**job.config, "data": {**job.config["data"], "batch_size": max(1, job.config["data"]["batch_size"] // 2)}}
    alone = replace(job, config=half)

    def rank() -> Figures:
        torch.distributed.init_process_group("gloo")
        work = stepping(alone, way, steps)
        work()
        torch.distributed.barrier()
        found = work()
        count = num_parameters(alone)
        gradients = torch.zeros(count).split(BUCKET // 4)
        torch.distributed.barrier()
        start_s = time.perf_counter()
        for bucket in gradients:
            torch.distributed.all_reduce(bucket)
        found["exchange"] = 4 * count / 1e9 / (time.perf_counter() - start_s)
        torch.distributed.destroy_process_group()
        return found

    limits = Limits(**job.config["elastic"])
    return lambda: dict(launch(rank, num_ranks=2, isolated=False, limits=limits))
