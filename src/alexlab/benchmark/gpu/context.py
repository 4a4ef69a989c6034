"""Arguments of all parts, and the datasets and configs that they train."""

import copy
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alexlab.benchmark.config import BenchmarkConfig
from alexlab.benchmark.context import BenchmarkContext
from alexlab.benchmark.gpu.config import GpuConfig
from alexlab.config import build_data
from alexlab.config.data import data_config
from alexlab.config.instantiate import Config
from alexlab.data.sources.synthetic import SMALL, write_synthetic_photos
from alexlab.records.run import Run

# Dropout draws other numbers on each device, so that no check uses it.
CHECKED = {
    "model.dropout": 0.0,
    "data.cache": None,
    "data.num_workers": 0,
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "fused": True},
    "scheduler": {"_target_": "alexlab.training.schedules.constant", "warmup_epochs": 0, "warmup_start": 0.01},
    "callbacks": {},
    "logger": {},
    "trainer.precision": "32-true",
    "trainer.max_epochs": 1,
}


@dataclass(frozen=True)
class GpuContext:
    """One run of the suite.

    Args:
        config: composed config of `train.py`.
        choices: option chosen in each config group.
        settings: the `gpu` node.
        device: `cpu` or `cuda`.
        out_dir: folder of the results.
        work_dir: folder of datasets and runs, removed at the end.
        train: the task of `train.py`.
    """

    config: Config
    choices: Mapping[str, str]
    settings: GpuConfig
    device: str
    out_dir: Path
    work_dir: Path
    train: Callable[[Run], Any]

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def write_photographs(self) -> None:
        """Generate photographs, and link them as often as the datasets of the suite need."""
        settings = self.settings
        counts = {"train": settings.photographs, "val": max(2, settings.photographs // 4)}
        write_synthetic_photos(str(self.work_dir / "photographs"), replace(SMALL, counts=counts))
        for name, num_train, num_val in (
            ("check", settings.check_images, settings.check_images // 4),
            ("jpeg", settings.jpeg_images, settings.val_images),
            ("packed", settings.packed_images, settings.val_images),
        ):
            link_images(self.work_dir / "photographs", self.work_dir / name, {"train": num_train, "val": num_val})

    def check_config(self, changes: Mapping[str, Any]) -> Config:
        """Return the config of a check: a short training in 32 bits on a few images, with these changes."""
        data = {
            "data.root": str(self.work_dir / "check"),
            "data.cache_dir": str(self.work_dir / "cache"),
            "data.batch_size": self.settings.check_images // 4,
        }
        return changed(self.config, {**data, **CHECKED, **changes})

    def fit(self, name: str, changes: Mapping[str, Any], *, resumed: bool = False) -> Path:
        """Train a `check_config` in a child process, as `train.py` does, and return the run folder."""
        run_dir = self.work_dir / "runs" / name
        run_dir.mkdir(parents=True, exist_ok=True)
        run = Run(config=self.check_config(changes), dir=run_dir, choices=self.choices, isolated=True, resumed=resumed)
        self.train(run)
        return run_dir

    def benchmark(self, images: str, changes: Mapping[str, Any]) -> BenchmarkContext:
        """Return a benchmark on one of the datasets, with these changes of the config.

        Args:
            images: `check`, `jpeg` or `packed`.
            changes: values by dotted key.
        """
        data = {"data.root": str(self.work_dir / images), "data.cache_dir": str(self.work_dir / "cache")}
        config = changed(self.config, {**data, **changes})
        return BenchmarkContext(
            config=config,
            choices=self.choices,
            overrides=(),
            settings=BenchmarkConfig(pairs=self.settings.rounds),
            splits=build_data.packed_splits(config, data_config(config).find_splits()),
            device=self.device,
            num_ranks=1,
            out_dir=self.work_dir,
            train=self.train,
        )


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a copy of a config with values by dotted key; keys that it does not have are left out."""
    result = copy.deepcopy(config)
    for key, value in changes.items():
        *nodes, name = key.split(".")
        node = result
        for each in nodes:
            node = node[each]
        if name in node:
            node[name] = value
    return result


def link_images(source: Path, target: Path, counts: Mapping[str, int]) -> None:
    """Link images of `source/<split>/<class>/` to `target`, each as often as the number of images of a split needs."""
    for split, count in counts.items():
        files = sorted((source / split).rglob("*.jpg"), key=lambda path: path.name)
        for index, file in zip(range(count), itertools.cycle(files)):
            folder = target / split / file.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            os.link(file, folder / f"{index:06d}.jpg")
