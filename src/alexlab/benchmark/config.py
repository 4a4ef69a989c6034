"""Config node `benchmark`, and the subset of images to measure on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexlab.data.manifest import ManifestRow, write_manifest
from alexlab.data.spacing import evenly_spaced
from alexlab.data.splits import Split, Splits
from alexlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """The `benchmark` node.

    Args:
        pairs: number of recorded rounds; every candidate has one turn per round.
        train_images, val_images: number of images, evenly spaced in each split; None for all.
        steps: optimizer steps per turn in the suite `step`.
        loader_images: images per turn in the suite `loader`, twenty times as many of packed ones.
        shards: location of the shards that the suite `loader` writes, s3://bucket/prefix or a new folder; None for a folder of
            the benchmark.
        compiled: time a compiled step in the suite `step`; None only on a GPU.
        files, classes, workers, ranks, widths: values that the suite `scaling` compares.
        peer_epochs: epochs of a whole command that is compared with `peer=`.
    """

    pairs: int = 5
    train_images: int | None = 640
    val_images: int | None = 320
    steps: int = 4
    loader_images: int = 256
    shards: str | None = None
    compiled: bool | None = None
    files: Sequence[int] = (1_000, 10_000, 100_000)
    classes: Sequence[int] = (10, 100, 1_000, 10_000)
    workers: Sequence[int] = (0, 1, 2, 4)
    ranks: Sequence[int] = (1, 2)
    widths: Sequence[float] = (0.25, 0.5, 1.0)
    peer_epochs: int = 1

    def __post_init__(self) -> None:
        for name in ("pairs", "steps", "loader_images", "peer_epochs", "train_images", "val_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"benchmark.{name} must be at least 1; got {getattr(self, name)}")


def write_subset(splits: Splits, num_train: int | None, num_val: int | None, path: Path) -> Path:
    """Write a manifest, which is a dataset itself, of evenly spaced images of the training and the validation split.

    Validation images are chosen only from the classes of the chosen training images, since every class must be in train.

    Raises:
        ConfigError: if there is no such validation image.
    """
    train = _sample(np.arange(len(splits.train)), num_train)
    known = np.isin(splits.val.labels, splits.train.labels[train])
    val = _sample(np.flatnonzero(known), num_val)
    if not len(val):
        raise ConfigError(
            "benchmark.train_images must be large enough to include a class that has validation images; "
            f"got {num_train} of {len(splits.train)} images"
        )
    rows = [_manifest_row(splits.train, index, "train") for index in train.tolist()]
    write_manifest([*rows, *(_manifest_row(splits.val, index, "val") for index in val.tolist())], path)
    return path


def _sample(indices: np.ndarray, count: int | None) -> np.ndarray:
    """Return at most `count` of sorted indices; None for all."""
    return indices if count is None else np.asarray(indices[evenly_spaced(len(indices), count)])


def _manifest_row(split: Split, index: int, name: str) -> ManifestRow:
    path = os.path.abspath(os.path.join(split.root, split.paths[index]))
    return ManifestRow(path, label=split.classes[split.labels[index]], split=name)
