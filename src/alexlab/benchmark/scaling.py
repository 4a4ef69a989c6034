"""What more of something costs: files, classes, loader processes, ranks, width."""

import copy
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder

from alexlab.benchmark.baselines import Job, one_device
from alexlab.benchmark.context import Measuring
from alexlab.benchmark.epochs import job_of, ours, timed
from alexlab.benchmark.interleave import Contender, Figures, repeated
from alexlab.benchmark.roofline import CEILING, rates, share, train_flops
from alexlab.benchmark.step import Way, stepping
from alexlab.benchmark.table import Row
from alexlab.config.build import datamodule
from alexlab.data.listing import list_images
from alexlab.data.listing_cache import SETTLE_S

PER_CLASS = 1000  # files


def suite(measuring: Measuring) -> list[Row]:
    """A row for each number; that with the smallest number stands beside the others."""
    return [*files(measuring), *steps(measuring), *workers(measuring), *ranks(measuring)]


def files(measuring: Measuring) -> list[Row]:
    """Seconds until so many files are known: by a walk, from the index of an earlier start, and by ImageFolder."""
    place, index = measuring.out / "files", measuring.out / "index"
    ways: dict[str, Callable[[], Any]] = {
        "listed by a walk": lambda: list_images(str(place), cache_dir=None),
        "known from the index": lambda: list_images(str(place), cache_dir=index),
        "torchvision's ImageFolder": lambda: ImageFolder(str(place)),
    }
    rows = []
    for count in measuring.settings.files:
        try:
            make_files(place, count)
            found = measuring.contest(
                [Contender(name, repeated(_timing, way)) for name, way in ways.items()], f"scale: {count} files"
            )
        finally:
            shutil.rmtree(place, ignore_errors=True)
            shutil.rmtree(index, ignore_errors=True)
        *own, usual = ways
        rows += [
            Row("scaling", f"{count:,} files: {name}", rates(found[name], "s"), "s", usual, rates(found[usual], "s"))
            for name in own
        ]
    return rows


def _timing(work: Callable[[], Any]) -> Callable[[], Figures]:
    return lambda: timed(work)


def make_files(place: Path, count: int) -> None:
    """Empty files, a thousand in each folder; at least two folders."""
    num_classes = max(2, count // PER_CLASS)
    for number in range(num_classes):
        folder = place / f"class{number:04d}"
        folder.mkdir(parents=True)
        for index in range(count // num_classes):
            os.close(os.open(folder / f"image{index:06d}.jpg", os.O_CREAT | os.O_WRONLY))
    time.sleep(SETTLE_S)  # an index is kept of folders that have not changed a moment ago


def steps(measuring: Measuring) -> list[Row]:
    """Images/s of a step with so many classes, and at so many times the width."""
    job, settings = job_of(measuring, "scaling"), measuring.settings
    own = Way(bfloat16=measuring.bfloat16)
    groups = [
        {f"{count:,} classes": with_classes(job, count) for count in settings.classes},
        {f"width {width:g}": with_width(job, width) for width in settings.widths},
    ]
    rows = []
    for jobs in groups:
        found = measuring.contest(
            [Contender(name, repeated(stepping, each, own, settings.steps)) for name, each in jobs.items()],
            f"scale: {', '.join(jobs)}",
            ceiling=True,
        )
        ceiling = found.pop(CEILING)
        for row, (name, each) in zip(_beside_first(found, "rate", "step, {}"), jobs.items(), strict=True):
            operations, _ = train_flops(each.config, len(each.splits.classes))
            rows.append(replace(row, limit=share(found[name], operations, ceiling)))
    return rows


def with_classes(job: Job, count: int) -> Job:
    """The same with other classes; there are no images of them."""
    classes = [f"{number:05d}" for number in range(count)]
    train = replace(job.splits.train, classes=classes)
    return replace(job, splits=replace(job.splits, train=train))


def with_width(job: Job, width: float) -> Job:
    """The same with another `model.width`, for nets that have one."""
    config = copy.deepcopy(job.config)
    config["model"]["width"] = width
    return replace(job, config=config)


def workers(measuring: Measuring) -> list[Row]:
    """Images/s of the training loader alone, and of a training, with so many loader processes."""
    loaders, trainings = [], []
    for count in measuring.settings.workers:
        config = {**measuring.config, "data": {**measuring.config["data"], "num_workers": count}}
        name = f"{count} loader processes"
        job = replace(job_of(measuring, name), config=config)
        loaders.append(Contender(name, repeated(epochs_of, job)))
        trainings.append(Contender(name, partial(ours, job)))
    found = measuring.contest(loaders, "scale: loader processes")
    trained = measuring.contest(trainings, "scale: loader processes of a training")
    return [
        *_beside_first(found, "rate", "loader, {}: " + measuring.label),
        *_beside_first(trained, "train", "training, {}: " + measuring.label),
    ]


def epochs_of(job: Job) -> Callable[[], Figures]:
    """Images/s of a whole pass of the training loader."""
    data = one_device(datamodule(job.config, job.splits), job.device)
    loader: Any = data.train_dataloader()
    epoch = 0

    def work() -> Figures:
        nonlocal epoch
        loader.batch_sampler.set_epoch(epoch)
        epoch += 1
        start_s = time.perf_counter()
        seen = sum(len(labels) for _, labels in loader)
        return {"rate": seen / (time.perf_counter() - start_s)}

    return work


def ranks(measuring: Measuring) -> list[Row]:
    """Images/s of our training on so many ranks."""
    bodies = {
        f"{count} rank{'s' if count > 1 else ''}": partial(ours, job_of(measuring, "scaling", count))
        for count in measuring.settings.ranks
    }
    found = measuring.contest([Contender(name, body) for name, body in bodies.items()], "scale: ranks")
    return _beside_first(found, "train", "training, {}: " + measuring.label)


def _beside_first(found: dict[str, list[Figures]], figure: str, what: str) -> list[Row]:
    first, *_ = found
    rows = []
    for name, each in found.items():
        beside = ("", ()) if name == first else (first, rates(found[first], figure))
        rows.append(Row("scaling", what.format(name), rates(each, figure), "images/s", *beside))
    return rows
