"""Splits of a dataset class or a LightningDataModule, such as the user's own."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alexlab.data.crop import CropRule, part_of
from alexlab.data.image_file import DEFAULT_DECODING, Decoding
from alexlab.data.in_memory import from_pil, to_uint8, with_channels
from alexlab.data.own_datamodule import KEY, NOTE, DataModuleDatasets, is_datamodule
from alexlab.data.samplers import stratified_sample
from alexlab.data.splits import Split, Splits
from alexlab.errors import AlexlabError, DataError

CONTRACT = "must have len(), `classes` (names), `targets` (a label per image) and items (image, label)"


class DatasetImages:
    """Decoded images of a map-style dataset; an `alexlab.data.splits.ImageStore`.

    Args:
        dataset: its items are (image, label): PIL images, arrays (H, W) or (H, W, C), or tensors (C, H, W).
        labels: int64 (N,), the label of each item.
    """

    def __init__(self, dataset: Any, labels: np.ndarray) -> None:
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, row: int, decoding: Decoding, crop: CropRule | None = None) -> np.ndarray:
        """Return an image as `alexlab.data.decode.decode` does.

        Random draws of the item with torch, NumPy or `random` are those of the training image's seed, see `SeededDataset`.

        Raises:
            DataError: if the item is not an image with its label.
        """
        try:
            _seed_others(torch.initial_seed())
            item = self.dataset[row]
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            raise DataError(f"item {row} of {KEY} cannot be read: {reason}") from error
        image, label = item if isinstance(item, tuple | list) and len(item) == 2 else (None, None)
        if not isinstance(image, Image.Image | np.ndarray | Tensor):
            found = type(item if image is None else image).__name__
            raise DataError(f"item {row} of {KEY} must be an image (PIL, array or tensor) and a label; got {found}")
        if not _equal(label, target := int(self.labels[row])):
            given = " ".join(repr(label).split())[:100]
            raise DataError(
                f"the label of item {row} of {KEY} must be its target, {target}; got {given}; `targets` must hold the labels of "
                "the items, such as those after a target_transform"
            )
        if isinstance(image, Image.Image):
            return part_of(from_pil(image, decoding.channels), crop)
        pixels = to_uint8(image)
        if isinstance(image, Tensor) and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        return part_of(with_channels(pixels, decoding.channels), crop)


def dataset_splits(make: partial[Any], *, val_fraction: float, split_seed: int) -> Splits:
    """Return the splits of a dataset class, or of a class of LightningDataModules.

    Args:
        make: class with its arguments. A dataset class is called with train, val and test; it may be a function that returns
            None for a split that does not exist. Without val, a part of train becomes val.
        val_fraction: fraction of each class, 0..1, of that part.
        split_seed: seed of that part, and of all random draws while the datasets are built.

    Raises:
        DataError: if a dataset cannot be built or does not have the required attributes.
    """
    notes = (NOTE,) if is_datamodule(make.func) else ()
    get: Callable[[str], Any] = DataModuleDatasets(make) if notes else make
    train, val, test = (_split(get, name, split_seed) for name in ("train", "val", "test"))
    if train is None:
        raise DataError(f"{KEY} must have a dataset for the split train; got None")
    for name, split in (("val", val), ("test", test)):
        if split is not None and split.classes != train.classes:
            raise DataError(f"{KEY} must have the same classes in every split; those of {name} differ from train")
    if val is not None:
        return Splits(train, val, test, notes=notes).with_missing_class_notes()
    count = round(val_fraction * len(train))
    if not 0 < count < len(train):
        raise DataError(
            f"data.val_fraction must leave images in train and val; got {val_fraction} of {len(train)} images"
        )
    rows = stratified_sample(train.labels, count, seed=split_seed)
    others = np.setdiff1d(np.arange(len(train)), rows)
    note = f"no val split: {count} of {len(train)} training images became the validation split"
    splits = Splits(train.take(others), train.take(rows), test, auto_split=True, notes=(*notes, note))
    return splits.with_missing_class_notes()


def _equal(label: Any, target: int) -> bool:
    try:
        return bool(label == target)
    except (ValueError, RuntimeError):  # several numbers, such as a one-hot label
        return False


def _seed_others(seed: int) -> None:
    """Seed the global generators of NumPy and Python, which nothing in alexlab uses."""
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _split(make: Callable[[str], Any], name: str, seed: int) -> Split | None:
    try:
        # The parts of a random_split without a generator must be the same whenever the run is resumed.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            _seed_others(seed)
            dataset = make(name)
        if dataset is None:
            return None
        classes = [str(each) for each in dataset.classes]
        labels = np.asarray(dataset.targets)
    except AlexlabError:
        raise
    except Exception as error:
        raise DataError(f"{KEY} {CONTRACT}; split {name}: {' '.join(str(error).split())}") from error
    if labels.shape != (len(dataset),) or labels.dtype.kind not in "iu" or len(dataset) == 0:
        raise DataError(
            f"{KEY}.targets must be one integer per image; the split {name} has {len(dataset)} images and targets of "
            f"shape {labels.shape} and type {labels.dtype}"
        )
    if len(set(classes)) != len(classes) or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{KEY} must have distinct classes and targets from 0 to {len(classes) - 1}; the split {name} has "
            f"{len(classes)} classes and targets from {labels.min()} to {labels.max()}"
        )
    labels = labels.astype(np.int64)
    images = DatasetImages(dataset, labels)
    images.load(0, DEFAULT_DECODING)  # an item that is no image, or has another label, fails before the run
    return Split(
        root=KEY,
        classes=classes,
        paths=[f"{name}/{row}" for row in range(len(labels))],
        labels=labels,
        images=images,
        lengths=np.zeros(len(labels), np.int64),
    )
