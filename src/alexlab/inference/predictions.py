"""Predictions of a trained network on a labelled split."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alexlab.data.config import DataConfig
from alexlab.data.dataset import ImageDataset, Reader
from alexlab.data.image_file import none_readable
from alexlab.data.layout import find_layout
from alexlab.data.scan import check_root, scan_folder
from alexlab.data.splits import Split
from alexlab.data.unreadable import UnreadableLog, suggest_skipping
from alexlab.errors import ConfigError, DataError
from alexlab.inference.checkpoint import NO_DATA, TrainedModel
from alexlab.inference.ensemble import EnsembleInference
from alexlab.output.progress import track
from alexlab.training.metrics import ClassificationMetrics, cross_entropies
from alexlab.training.preprocessing import Inference

log = logging.getLogger(__name__)

SPLIT_CHOICES = ("val", "test", "train", "all")
OWNER = "the checkpoint"  # in messages about classes


@dataclass(frozen=True)
class Predictions:
    """Predictions on N labelled images of K classes; unreadable images are excluded.

    Args:
        split: split of the images.
        indices: indices of the images in the split, int64 (N,).
        labels: int64 (N,).
        top_classes: int64 (N, min(5, K)), most probable class first.
        top_probs: float32 (N, min(5, K)), probabilities of `top_classes`.
        label_prob: float32 (N,), probability of the label.
        metrics: loss, top1, top5 and count, computed as in the final test of a run.
    """

    split: Split
    indices: np.ndarray
    labels: np.ndarray
    top_classes: np.ndarray
    top_probs: np.ndarray
    label_prob: np.ndarray
    metrics: dict[str, float]

    @cached_property
    def paths(self) -> list[str]:
        """Paths of the N images, for display."""
        return [self.split.file_path(index) for index in self.indices.tolist()]

    @property
    def correct(self) -> np.ndarray:
        """Mask of the images whose top class is the label, bool (N,)."""
        return self.hits(1)

    def hits(self, k: int) -> np.ndarray:
        """Return the mask of the images whose label is among the top `k` classes, at most 5, bool (N,)."""
        return np.asarray((self.top_classes[:, :k] == self.labels[:, None]).any(1))


def select_split(
    model: TrainedModel, settings: DataConfig, requested: str | None, *, from_run: bool
) -> tuple[str, Split]:
    """Return a split by name, labelled with the model's class indices.

    Args:
        model: trained model.
        settings: data settings.
        requested: val, test, train or all. None selects test if it exists, else val; for the folder of another dataset that
            has no splits, it selects all.
        from_run: whether the settings refer to the data of the run.

    Returns:
        The name of the split, and the split.

    Raises:
        DataError: if the folder or the split does not exist, or the model does not know one of its classes.
    """
    if requested not in (None, *SPLIT_CHOICES):
        raise ConfigError(f"split must be one of {', '.join(SPLIT_CHOICES)}; got {requested!r}")
    if settings.root == NO_DATA:
        raise ConfigError(
            f"{model.label} does not name its data; set data.root=DIR to a folder of images, one folder per class"
        )
    if settings.root is None:
        return _find_split(model, settings, requested)
    if not os.path.exists(settings.root) and settings.generate is None:
        missing = "the data of the run was moved or deleted" if from_run else "the folder does not exist"
        check_root(settings.root, missing=missing)
    if os.path.isdir(settings.root):
        layout = find_layout(settings.root, settings.splits)
        whole = requested == "all" or (requested is None and not from_run)
        if whole and not layout.folders and layout.ambiguity is None:
            return "all", _scan_folder(model, settings, "", [])
        if layout.folders and layout.folder("train") is None:  # a folder with only a test split, for example
            name = requested or next(name for name in ("test", "val") if name in layout.folders)
            folder = layout.folder(name)
            if folder is None:
                raise DataError(f"{settings.root} has no split {name}; it has {', '.join(layout.folders)}")
            return name, _scan_folder(model, settings, folder, layout.notes)
    return _find_split(model, settings, requested)


def _scan_folder(model: TrainedModel, settings: DataConfig, folder: str, notes: Sequence[str]) -> Split:
    all_notes = list(notes)
    split = scan_folder(str(settings.root), folder, model.classes, Path(settings.cache_dir), all_notes, OWNER)
    for note in all_notes:
        log.info("data: %s", note)
    return split


def _find_split(model: TrainedModel, settings: DataConfig, requested: str | None) -> tuple[str, Split]:
    found = settings.find_splits()
    for note in found.notes:
        log.info("data: %s", note)
    splits = dict(found.items())
    name = requested or ("test" if "test" in splits else "val")
    if name not in splits:
        raise DataError(f"{settings.location} has no split {name}; it has {', '.join(splits)}")
    return name, splits[name].relabel(model.classes, OWNER)


class IndexedDataset:
    """Images with their label and their index, so that results can be matched to images in any order."""

    def __init__(self, images: ImageDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        image, label = self.images[index]
        return image, label, index


def split_loader(
    split: Split,
    read: Reader,
    settings: DataConfig,
    *,
    unreadable: UnreadableLog | None = None,
) -> DataLoader[Any]:
    """Return a loader of (images, labels, indices) over a split, in order; the label of an unreadable image is negative."""
    dataset = IndexedDataset(ImageDataset(split, read, unreadable=unreadable))
    workers = settings.workers_per_rank(1) if len(split) > settings.batch_size else 0
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=settings.batch_size,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def predict_split(
    model: TrainedModel, split: Split, settings: DataConfig, *, views: str, title: str, skipped: Path
) -> list[Predictions]:
    """Predict each image of a split once with a progress bar, see `predict_members`.

    Args:
        model: trained model.
        split: the images.
        settings: data settings that decide how they are read.
        views: views of each image, as in `TrainedModel.reader`.
        title: title of the progress bar.
        skipped: list of unreadable images, written if the settings skip them.
    """
    unreadable = UnreadableLog(skipped) if settings.on_error == "skip" else None
    loader = split_loader(split, model.reader(views), settings, unreadable=unreadable)
    with suggest_skipping({"on_error": settings.on_error, "root": settings.root}):
        found = predict_members(model.inference, loader, split, progress=partial(track, title=title))
    if unreadable is not None:
        unreadable.finish()
    return found


@torch.inference_mode()
def predict_members(
    inference: Inference | EnsembleInference,
    loader: Any,
    split: Split,
    *,
    progress: Callable[[Any], Iterator[Any]] = iter,
) -> list[Predictions]:
    """Predict each image of a split once; an ensemble's predictions are followed by those of each of its members.

    Args:
        inference: network, or ensemble, with its preprocessing.
        loader: loader from `split_loader`.
        split: split of the loader.
        progress: wrapper of the loader that shows a progress bar.

    Raises:
        DataError: if no image could be read, or an image was not predicted exactly once.
    """
    collectors: list[_Collector] = []
    for images, labels, indices in progress(loader):
        labels = labels.to(inference.device)
        found = inference.all_logits(images)
        collectors = collectors or [_Collector(split, inference.device) for _ in found]
        for collector, logits in zip(collectors, found, strict=True):
            collector.add(logits, labels, indices)
    return [collector.predictions() for collector in collectors]


class _Collector:
    """Predictions of one network, batch by batch."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split = split
        self.columns: dict[str, list[Tensor]] = {
            name: [] for name in ("indices", "labels", "top_classes", "top_probs", "label_prob")
        }
        self.metrics = ClassificationMetrics(len(split.classes)).to(device)

    def add(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        self.metrics.update(logits, labels, cross_entropies(logits, labels))
        probs, top_classes = logits.softmax(1), self.metrics.top_classes(logits)
        label_prob = probs.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        readable = (labels >= 0).cpu()
        values = (indices, labels, top_classes, probs.gather(1, top_classes), label_prob)
        for name, value in zip(self.columns, values, strict=True):
            self.columns[name].append(value.cpu()[readable])

    def predictions(self) -> Predictions:
        arrays = {name: torch.cat(parts).numpy() for name, parts in self.columns.items()}
        results = {name: value.item() for name, value in self.metrics.compute().items()}
        num_seen = results["count"] + results.pop("skipped")
        if num_seen != len(self.split) or len(np.unique(arrays["indices"])) != results["count"]:
            raise DataError(f"every image must be predicted exactly once; {num_seen} of {len(self.split)} were")
        if not results["count"]:
            raise none_readable(self.split.root)
        return Predictions(self.split, **arrays, metrics=results)
