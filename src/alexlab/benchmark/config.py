"""What is measured, on how much and how often: the keys of the `benchmark` node, and what the suites share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexlab.data.manifest import ManifestRow, write_manifest
from alexlab.data.splits import Split, Splits
from alexlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured.

    Args:
        pairs: rounds that count; in each, every contender has a turn.
        train_images, val_images: of the data, evenly spaced; None takes all.
        steps: optimizer steps of a turn in the suite `step`.
        loader_images: images of a turn in the suite `loader`; of packed ones twenty times as many.
        shards: where that suite writes the images as shards, s3://bucket/prefix or a new folder; None is a folder of its own.
        compiled: whether the suite `step` has a compiled step; None on a GPU.
        files, classes, workers, ranks, widths: how many of each in the suite `scale`.
        peer_epochs: epochs of a whole command, with `peer=`.
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
        for name in ("pairs", "steps", "loader_images", "peer_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"benchmark.{name} must be at least 1; got {getattr(self, name)}")


def write_subset(splits: Splits, num_train: int | None, num_val: int | None, path: Path) -> Path:
    """A manifest, which is a data set itself, of some images of a training and a validation split, evenly spaced."""
    rows: list[ManifestRow] = []
    for name, split, count in (("train", splits.train, num_train), ("val", splits.val, num_val)):
        chosen = np.linspace(0, len(split) - 1, min(len(split), count or len(split))).round().astype(int)
        rows += [_listed(split, row, name) for row in np.unique(chosen).tolist()]
    write_manifest(rows, path)
    return path


def _listed(split: Split, row: int, name: str) -> ManifestRow:
    path = Path(split.root, split.paths[row]).resolve()
    return ManifestRow(str(path), label=split.classes[split.labels[row]], split=name)
