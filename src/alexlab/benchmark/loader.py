"""Suite `loader`: images/s that one core reads, by the usual loader and by ours from files, from shards and packed."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from alexlab.benchmark.baselines import PillowDataset, torchvision_transforms
from alexlab.benchmark.context import BenchmarkContext
from alexlab.benchmark.interleave import Candidate, Figures, loop
from alexlab.benchmark.roofline import per_round
from alexlab.benchmark.table import Row
from alexlab.benchmark.workload import Workload, on_one_device
from alexlab.config.data import data_config
from alexlab.data.config import DataConfig
from alexlab.data.datamodule import ImageDataModule
from alexlab.data.transforms import CenterView, RandomCropView
from alexlab.distributed.hardware import cores

PACKED_FACTOR = 20  # packed images are read so much faster that a turn needs more of them
BASELINE = "ImageFolder, Pillow, transforms v1, random resized crop and flip"


def suite(context: BenchmarkContext) -> list[Row]:
    """Compare the loaders on one core, without worker processes."""
    sources = (context.on_files(), context.on_shards(), context.on_packed())
    files, shards, packed = (source.workload("loader") for source in sources)
    size = context.config["data"]["image_size"]
    flip = v2.RandomHorizontalFlip()
    resized_crop = v2.Compose([v2.RandomResizedCrop(size, antialias=True), flip])
    crop = v2.Compose([RandomCropView(size, square=True), flip])
    loaders: dict[str, Callable[[], Any]] = {
        BASELINE: lambda: _baseline_batches(files),
        "from JPEG: random resized crop and flip": lambda: _batches(files, resized_crop),
        "from JPEG: crop and flip": lambda: _batches(files, crop),
        "from shards: random resized crop and flip": lambda: _batches(shards, resized_crop),
        "packed: random resized crop and flip": lambda: _batches(packed, resized_crop),
        "packed: crop and flip": lambda: _batches(packed, crop),
    }
    num_images = dict.fromkeys(loaders, context.settings.loader_images)
    num_images |= {name: PACKED_FACTOR * count for name, count in num_images.items() if "packed" in name}
    candidates = [
        Candidate(name, loop(_reader, batches, num_images[name]), cores()[:1]) for name, batches in loaders.items()
    ]
    results = context.interleave(candidates, "loader: one core")
    baseline_values = per_round(results.pop(BASELINE))
    return [
        Row("loader", name, per_round(figures), "images/s", BASELINE, baseline_values, "one core")
        for name, figures in results.items()
    ]


def _baseline_batches(workload: Workload) -> Any:
    """Return an infinite iterator over batches of the usual loader."""
    batch_size = data_config(workload.config).batch_size
    dataset = PillowDataset(workload.splits.train, torchvision_transforms(workload)[0])
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
    return itertools.chain.from_iterable(loader for _ in itertools.count())


def _batches(workload: Workload, transform: Any) -> Any:
    """Return an infinite iterator over batches of our loader."""
    node = {**workload.config["data"], "num_workers": 0}
    view = CenterView(node["image_size"])
    datamodule = ImageDataModule(
        DataConfig(**node),
        workload.splits,
        train_transform=transform,
        eval_transform=view,
        seed=workload.config["seed"],
    )
    loader: Any = on_one_device(datamodule).train_dataloader()

    def epochs() -> Any:
        for epoch in itertools.count():
            loader.batch_sampler.set_epoch(epoch)
            yield loader

    return itertools.chain.from_iterable(epochs())


def _reader(make_batches: Callable[[], Any], num_images: int) -> Callable[[], Figures]:
    torch.set_num_threads(1)
    batches = make_batches()

    def work() -> Figures:
        num_read, start_s = 0, time.perf_counter()
        while num_read < num_images:
            num_read += len(next(batches)[1])
        return {"rate": num_read / (time.perf_counter() - start_s)}

    return work
