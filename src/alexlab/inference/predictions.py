"""A trained net and labelled images: which ones, and what it says of each."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alexlab.data.config import DataConfig
from alexlab.data.dataset import ImageDataset
from alexlab.data.layout import find_layout
from alexlab.data.splits import Split, check_root, relabel, scan_folder
from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import ConfigError, DataError
from alexlab.inference.checkpoint import NO_DATA, TrainedModel
from alexlab.training.preprocessing import Inference

log = logging.getLogger(__name__)

TOP = 5
SPLITS = ("val", "test", "train", "all")


@dataclass(frozen=True)
class Predictions:
    """What a net says of N labelled images of K classes; images that could not be read are not among them.

    Args:
        split: that the images are of.
        numbers: of the images in the split, int64 (N,).
        labels: int64 (N,).
        top: int64 (N, min(5, K)), the classes by falling probability.
        probs: float32 (N, min(5, K)), their probabilities.
        own: float32 (N,), the probability of the label.
        loss: mean cross entropy.
    """

    split: Split
    numbers: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    probs: np.ndarray
    own: np.ndarray
    loss: float

    @cached_property
    def paths(self) -> list[str]:
        """Where each image lies, for people, N."""
        return [self.split.file_path(number) for number in self.numbers.tolist()]

    @property
    def right(self) -> np.ndarray:
        """Whether the first answer is the label, bool (N,)."""
        return np.asarray(self.top[:, 0] == self.labels)


def select_split(
    trained: TrainedModel, settings: DataConfig, wanted: str | None, *, from_run: bool
) -> tuple[str, Split]:
    """The images that are to be scored, labelled as the net knows the classes.

    Args:
        trained: the net.
        settings: of the data.
        wanted: val, test, train or all; None is test where there is one, else val, and all of a folder of another data set
            that is not divided.
        from_run: whether the folder is that of the run.

    Returns:
        The name of the split, and the split.

    Raises:
        DataError: when there is no such folder or split, or the net does not know one of its classes.
    """
    if wanted not in (None, *SPLITS):
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}; got {wanted!r}")
    owner = "the checkpoint"
    if settings.root == NO_DATA:
        raise ConfigError(
            f"{trained.path} knows of no data; data.root=DIR names a folder of images, one folder per class"
        )
    if settings.root is None:
        return _of_splits(trained, settings, wanted, owner)
    if not os.path.exists(settings.root) and settings.generate is None:
        check_root(settings.root, missing="the data of the run is gone" if from_run else "there is no such folder")
    if os.path.isdir(settings.root):
        layout = find_layout(settings.root, settings.splits)
        if not from_run and not layout.folders and layout.ambiguity is None and wanted in (None, "all"):
            return "all", _scanned(trained, settings, "", [], owner)
        if layout.folders and layout.folder("train") is None:  # a folder with a test split alone, say
            name = wanted or next(name for name in ("test", "val") if name in layout.folders)
            folder = layout.folder(name)
            if folder is None:
                raise DataError(f"{settings.root} has no split {name}; it has {', '.join(layout.folders)}")
            return name, _scanned(trained, settings, folder, layout.notes, owner)
    return _of_splits(trained, settings, wanted, owner)


def _scanned(trained: TrainedModel, settings: DataConfig, folder: str, notes: Sequence[str], owner: str) -> Split:
    found = list(notes)
    split = scan_folder(str(settings.root), folder, trained.classes, Path(settings.cache_dir), found, owner)
    for note in found:
        log.info("data: %s", note)
    return split


def _of_splits(trained: TrainedModel, settings: DataConfig, wanted: str | None, owner: str) -> tuple[str, Split]:
    found = settings.find_splits()
    for note in found.notes:
        log.info("data: %s", note)
    splits = dict(found.items())
    name = wanted or ("test" if "test" in splits else "val")
    if name not in splits:
        raise DataError(f"{settings.location} has no split {name}; it has {', '.join(splits)}")
    return name, relabel(splits[name], trained.classes, owner)


class IndexedDataset:
    """Images by number, with that number: the order of what a loader gives is then plain."""

    def __init__(self, images: ImageDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        image, label = self.images[index]
        return image, label, index


def split_loader(
    split: Split, transform: Callable[[Tensor], Tensor], settings: DataConfig, *, skipped: UnreadableLog | None = None
) -> DataLoader[Any]:
    """A loader of (images, labels, numbers) over each image of a split once; the label is below 0 where it cannot be read."""
    items = IndexedDataset(ImageDataset(split, transform=transform, decoding=settings.decoding, unreadable=skipped))
    workers = settings.workers_per_rank(1) if len(split) > settings.batch_size else 0
    return DataLoader(
        items,  # type: ignore[arg-type]
        batch_size=settings.batch_size,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


@torch.inference_mode()
def predict_split(
    inference: Inference, loader: Any, split: Split, *, watch: Callable[[Any], Iterator[Any]] = iter
) -> Predictions:
    """Asks a net about each image of a split once.

    Args:
        inference: the net.
        loader: from `split_loader`.
        split: of the loader.
        watch: an iterator that shows the progress.

    Raises:
        DataError: when no image could be read, or an image was not asked about exactly once.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in ("numbers", "labels", "top", "probs", "own")}
    loss_sum, seen = 0.0, 0
    for images, labels, numbers in watch(loader):
        probs = inference.probs(images).cpu()
        seen += len(labels)
        keep = labels >= 0
        probs, labels = probs[keep], labels[keep]
        best = probs.topk(min(TOP, probs.shape[1]), dim=1)
        own = probs.gather(1, labels[:, None])[:, 0]
        loss_sum -= own.double().clamp(min=torch.finfo(torch.float32).tiny).log().sum().item()
        for name, value in zip(found, (numbers[keep], labels, best.indices, best.values, own), strict=True):
            found[name].append(value)
    numbers = torch.cat(found["numbers"]).numpy()
    if seen != len(split) or len(np.unique(numbers)) != len(numbers):
        raise DataError(f"every image must be scored once; {seen} of {len(split)} were")
    if not len(numbers):
        raise DataError(f"no image of {split.root} could be read")
    arrays = {name: torch.cat(parts).numpy() for name, parts in found.items() if name != "numbers"}
    return Predictions(split, numbers, **arrays, loss=loss_sum / len(numbers))
