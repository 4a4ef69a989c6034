"""Images a second that one core reads: the usual loader, and ours from files, from shards and packed."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from alexlab.benchmark.baselines import Job, Usual, one_device, usual_transforms
from alexlab.benchmark.context import Measuring
from alexlab.benchmark.epochs import job_of
from alexlab.benchmark.interleave import Contender, Figures, repeated
from alexlab.benchmark.roofline import rates
from alexlab.benchmark.table import Row
from alexlab.config import build
from alexlab.data.config import DataConfig
from alexlab.data.datamodule import ImageDataModule
from alexlab.data.transforms import CenterView, RandomCropView
from alexlab.distributed.hardware import cores

PACKED_TIMES = 20  # so many times more packed images in a turn


def suite(measuring: Measuring) -> list[Row]:
    """Each contender on the same one core, in the process itself, without loader processes."""
    ways = (measuring.unpacked(), measuring.sharded(), measuring.packed())
    files, shards, packed = (job_of(of, "loader") for of in ways)
    size = measuring.config["data"]["image_size"]
    flip = v2.RandomHorizontalFlip()
    resized = v2.Compose([v2.RandomResizedCrop(size, antialias=True), flip])
    cut = v2.Compose([RandomCropView(size, square=True), flip])
    count = measuring.settings.loader_images
    makers: dict[str, Callable[[], Any]] = {
        "usual": lambda: _usual(files),
        "from JPEG: random resized crop and flip": lambda: _ours(files, resized),
        "from JPEG: crop and flip": lambda: _ours(files, cut),
        "from shards: random resized crop and flip": lambda: _ours(shards, resized),
        "packed: random resized crop and flip": lambda: _ours(packed, resized),
        "packed: crop and flip": lambda: _ours(packed, cut),
    }
    contenders = [
        Contender(
            name,
            repeated(_reading, make, count * (PACKED_TIMES if "packed" in name else 1)),
            cores()[:1],
        )
        for name, make in makers.items()
    ]
    found = measuring.contest(contenders, "loader: one core")
    usual = rates(found.pop("usual"))
    beside = "ImageFolder, Pillow, transforms v1, random resized crop and flip"
    return [Row("loader", name, rates(each), "images/s", beside, usual, "one core") for name, each in found.items()]


def _usual(job: Job) -> Any:
    """Batches without end."""
    settings = build.data(job.config)
    dataset = Usual(job.splits.train, usual_transforms(job)[0])
    loader = DataLoader(dataset, batch_size=settings.batch_size, shuffle=True, drop_last=True)
    return itertools.chain.from_iterable(loader for _ in itertools.count())


def _ours(job: Job, transform: Any) -> Any:
    settings = {**job.config["data"], "num_workers": 0}
    view = CenterView(settings["image_size"])
    data = one_device(
        ImageDataModule(
            DataConfig(**settings), job.splits, train_transform=transform, eval_transform=view, seed=job.config["seed"]
        )
    )
    loader: Any = data.train_dataloader()

    def epochs() -> Any:
        for epoch in itertools.count():
            loader.batch_sampler.set_epoch(epoch)
            yield loader

    return itertools.chain.from_iterable(epochs())


def _reading(make: Callable[[], Any], count: int) -> Callable[[], Figures]:
    torch.set_num_threads(1)
    batches = make()

    def work() -> Figures:
        seen, start_s = 0, time.perf_counter()
        while seen < count:
            seen += len(next(batches)[1])
        return {"rate": seen / (time.perf_counter() - start_s)}

    return work
