"""Suite `loader`: images/s that one core reads, by the usual loader and by ours from files, from shards and packed."""

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
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
RESIZED_CROP, CROP = "random resized crop and flip", "resize, crop and flip"
BASELINES = {recipe: f"ImageFolder, Pillow, transforms v1: {recipe}" for recipe in (RESIZED_CROP, CROP)}


def suite(context: BenchmarkContext) -> list[Row]:
    """Compare the loaders on one core, without worker processes."""
    sources = (context.on_files(), context.on_shards(), context.on_packed())
    files, shards, packed = (source.workload("loader") for source in sources)
    size = context.config["data"]["image_size"]
    flip = v2.RandomHorizontalFlip()
    recipes = {
        RESIZED_CROP: v2.Compose([v2.RandomResizedCrop(size, antialias=True), flip]),
        CROP: v2.Compose([RandomCropView(size, square=True), flip]),
    }
    loaders: dict[str, Callable[[], Any]] = {
        name: partial(_baseline_batches, files, recipe) for recipe, name in BASELINES.items()
    }
    for source, workload in (("from JPEG", files), ("from shards", shards), ("packed", packed)):
        for recipe, transform in recipes.items():
            loaders[f"{source}: {recipe}"] = partial(_batches, workload, transform)
    num_images = dict.fromkeys(loaders, context.settings.loader_images)
    num_images |= {name: PACKED_FACTOR * count for name, count in num_images.items() if "packed" in name}
    candidates = [
        Candidate(name, loop(_reader, batches, num_images[name]), cores()[:1]) for name, batches in loaders.items()
    ]
    results = context.interleave(candidates, "loader: one core")
    values = {name: per_round(figures) for name, figures in results.items()}
    baselines = {name: BASELINES[name.split(": ")[1]] for name in values if name not in BASELINES.values()}
    return [
        Row("loader", name, values[name], "images/s", baseline, values[baseline], "one core")
        for name, baseline in baselines.items()
    ]


def _baseline_batches(workload: Workload, recipe: str) -> Any:
    """Return an infinite iterator over batches of the usual loader."""
    settings, transform = data_config(workload.config), torchvision_transforms(workload)[0]
    if recipe == CROP:
        size = settings.image_size
        first = [transforms.Resize(round(size / 0.875)), transforms.RandomCrop(size)]
        transform = transforms.Compose([*first, *transform.transforms[1:]])
    dataset = PillowDataset(workload.splits.train, transform)
    loader = DataLoader(dataset, batch_size=settings.batch_size, shuffle=True, drop_last=True)
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
