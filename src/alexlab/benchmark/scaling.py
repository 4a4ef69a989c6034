"""Suite `scaling`: the cost of more files, classes, DataLoader workers, ranks and width."""

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

from alexlab.benchmark.commands import timed
from alexlab.benchmark.context import BenchmarkContext
from alexlab.benchmark.epochs import ours
from alexlab.benchmark.interleave import Candidate, Figures, loop
from alexlab.benchmark.roofline import CEILING, per_round, share_of_ceiling, train_flops
from alexlab.benchmark.step import StepVariant, prepare_steps
from alexlab.benchmark.table import Row
from alexlab.benchmark.workload import Workload
from alexlab.data.listing import list_images
from alexlab.data.listing_cache import SETTLE_S

FILES_PER_CLASS = 1000


def suite(context: BenchmarkContext) -> list[Row]:
    """Measure each quantity at several sizes, and compare all sizes with the first."""
    return [*scale_files(context), *scale_steps(context), *scale_workers(context), *scale_ranks(context)]


def scale_files(context: BenchmarkContext) -> list[Row]:
    """Compare the seconds to list a folder: by a walk, from the index of an earlier walk, and by ImageFolder."""
    root, index = context.out_dir / "files", context.out_dir / "index"
    listings: dict[str, Callable[[], Any]] = {
        "listed by a walk": lambda: list_images(str(root), cache_dir=None),
        "known from the index": lambda: list_images(str(root), cache_dir=index),
        "torchvision's ImageFolder": lambda: ImageFolder(str(root)),
    }
    candidates = [Candidate(name, loop(partial, timed, listing)) for name, listing in listings.items()]
    *names, baseline = listings
    rows = []
    for count in context.settings.files:
        try:
            make_files(root, count)
            results = context.interleave(candidates, f"scaling: {count} files")
        finally:
            shutil.rmtree(root, ignore_errors=True)
            shutil.rmtree(index, ignore_errors=True)
        values = {name: per_round(figures, "s") for name, figures in results.items()}
        rows += [
            Row("scaling", f"{count:,} files: {name}", values[name], "s", baseline, values[baseline]) for name in names
        ]
    return rows


def make_files(root: Path, count: int) -> None:
    """Make empty files, a thousand in each folder and at least two folders."""
    num_classes = max(2, count // FILES_PER_CLASS)
    for number in range(num_classes):
        folder = root / f"class{number:04d}"
        folder.mkdir(parents=True)
        for index in range(count // num_classes):
            os.close(os.open(folder / f"image{index:06d}.jpg", os.O_CREAT | os.O_WRONLY))
    time.sleep(SETTLE_S)  # a folder that has just changed is not kept in the index


def scale_steps(context: BenchmarkContext) -> list[Row]:
    """Compare the images/s of an optimizer step at several numbers of classes and, if the net has them, widths."""
    workload, settings = context.workload("scaling"), context.settings
    variant = StepVariant(bfloat16=context.bfloat16)
    groups = [
        {f"{count:,} classes": with_classes(workload, count) for count in settings.classes},
    ]
    if "width" in workload.config["model"]:
        groups.append({f"width {width:g}": with_width(workload, width) for width in settings.widths})
    rows = []
    for workloads in groups:
        candidates = [
            Candidate(name, loop(prepare_steps, each, variant, settings.steps)) for name, each in workloads.items()
        ]
        results = context.interleave(candidates, f"scaling: {', '.join(workloads)}", ceiling=True)
        ceiling = results.pop(CEILING)
        compared = compare_with_first(results, "rate", "step, {}")
        for row, (name, each) in zip(compared, workloads.items(), strict=True):
            operations, _ = train_flops(each.config, len(each.splits.classes))
            rows.append(replace(row, limit=share_of_ceiling(results[name], operations, ceiling)))
    return rows


def with_classes(workload: Workload, count: int) -> Workload:
    """Return the workload with other classes, which have no images."""
    classes = [f"{number:05d}" for number in range(count)]
    train = replace(workload.splits.train, classes=classes)
    return replace(workload, splits=replace(workload.splits, train=train))


def with_width(workload: Workload, width: float) -> Workload:
    """Return the workload with another `model.width`."""
    config = copy.deepcopy(workload.config)
    config["model"]["width"] = width
    return replace(workload, config=config)


def scale_workers(context: BenchmarkContext) -> list[Row]:
    """Compare the images/s of the training loader alone, and of a training, with several numbers of DataLoader workers."""
    loaders, trainings = [], []
    for count in context.settings.workers:
        name = f"{count} DataLoader workers"
        config = {**context.config, "data": {**context.config["data"], "num_workers": count}}
        workload = replace(context.workload(name), config=config)
        loaders.append(Candidate(name, loop(prepare_passes, workload)))
        trainings.append(Candidate(name, partial(ours, workload)))
    loader_results = context.interleave(loaders, "scaling: DataLoader workers")
    train_results = context.interleave(trainings, "scaling: DataLoader workers of a training")
    return [
        *compare_with_first(loader_results, "rate", f"loader, {{}}: {context.label}"),
        *compare_with_first(train_results, "train", f"training, {{}}: {context.label}"),
    ]


def prepare_passes(workload: Workload) -> Callable[[], Figures]:
    """Return a function that reads the training split once, measured in images/s."""
    loader: Any = workload.datamodule().train_dataloader()
    epoch = 0

    def work() -> Figures:
        nonlocal epoch
        loader.batch_sampler.set_epoch(epoch)
        epoch += 1
        start_s = time.perf_counter()
        num_images = sum(len(labels) for _, labels in loader)
        return {"rate": num_images / (time.perf_counter() - start_s)}

    return work


def scale_ranks(context: BenchmarkContext) -> list[Row]:
    """Compare the images/s of our training on several numbers of ranks."""
    candidates = [
        Candidate(f"{count} rank{'s' if count > 1 else ''}", partial(ours, context.workload("scaling", count)))
        for count in context.settings.ranks
    ]
    results = context.interleave(candidates, "scaling: ranks")
    return compare_with_first(results, "train", f"training, {{}}: {context.label}")


def compare_with_first(results: dict[str, list[Figures]], figure: str, what: str) -> list[Row]:
    """Return a row for each candidate, those after the first with the first as baseline.

    Args:
        results: figures by candidate.
        figure: key of the images/s.
        what: label of a row; {} is the name of the candidate.
    """
    first, *_ = results
    rows = []
    for name, figures in results.items():
        baseline = ("", ()) if name == first else (first, per_round(results[first], figure))
        rows.append(Row("scaling", what.format(name), per_round(figures, figure), "images/s", *baseline))
    return rows
