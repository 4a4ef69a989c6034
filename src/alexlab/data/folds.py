"""Folds of a cross-validation and fractions of the training split, drawn by the hash of each path like the splits themselves."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from alexlab.data.hash_split import assign_folds, find_groups, first_by_hash
from alexlab.data.listing import chosen_images
from alexlab.data.paths import PathArray
from alexlab.data.splits import Split, Splits
from alexlab.errors import ConfigError, DataError


def select_fold(splits: Splits, number: int, num_folds: int, *, seed: int, group: str | None) -> Splits:
    """Return splits in which one fold of the training and validation images validates and the other folds train.

    The folds are disjoint and together have every image once. Each has its share of each class to within one image.

    Args:
        splits: splits of the dataset; the test split is kept.
        number: index of the validation fold, from 0.
        num_folds: number of folds.
        seed: seed of the assignment.
        group: regular expression, see `find_groups`; a group is not divided.

    Raises:
        DataError: if a class has too few images or groups for two folds.
    """
    pool = merge(splits.train, splits.val)
    folds = assign_folds(pool.paths, pool.labels, pool.classes, num_folds, seed, _groups(pool.paths, group))
    train, val = pool.take(np.flatnonzero(folds != number)), pool.take(np.flatnonzero(folds == number))
    if not len(val):
        raise DataError(
            f"data.folds must be at most the number of images or groups; fold {number} of {num_folds} has no image"
        )
    if set(train.labels.tolist()) != set(range(len(pool.classes))):
        missing = min(set(range(len(pool.classes))) - set(train.labels.tolist()))
        raise DataError(f"every class must be in train; fold {number} has all groups of {pool.classes[missing]}")
    note = f"fold {number} of {num_folds} (0 to {num_folds - 1}) validates: {len(val)} of {len(pool)} images"
    notes = (*splits.notes, note, *val.missing_class_notes("val"))
    return replace(splits, train=train, val=val, auto_split=True, notes=notes)


def select_fraction(splits: Splits, fraction: float, *, seed: int, group: str | None) -> Splits:
    """Return splits with a part of the training images; a smaller fraction is a part of each larger one.

    Args:
        splits: splits of the dataset; val and test are kept.
        fraction: fraction of each class, 0..1, at least one image of each.
        seed: seed of the selection.
        group: regular expression, see `find_groups`; a group is not divided.

    Raises:
        DataError: if no image of a class is left.
    """
    train = splits.train
    kept = first_by_hash(train.paths, train.labels, train.classes, fraction, seed, _groups(train.paths, group))
    missing = set(range(len(train.classes))) - set(train.labels[kept].tolist())
    if missing:
        raise DataError(
            f"every class needs a training image; data.fraction={fraction:g} leaves no group of {train.classes[min(missing)]}"
        )
    note = f"data.fraction={fraction:g}: {len(kept)} of {len(train)} training images"
    return replace(splits, train=train.take(kept), notes=(*splits.notes, note))


def _groups(paths: Sequence[str], group: str | None) -> list[str] | None:
    return None if group is None else find_groups(paths, group, "data.group")


def merge(train: Split, val: Split) -> Split:
    """Return the images of two splits of a dataset, in the order of their listing, or those of `train` first."""
    rows, labels = _concatenate(train.rows, val.rows), np.concatenate([train.labels, val.labels])
    merged = replace(
        train,
        paths=PathArray.from_list([*train.paths, *val.paths]),
        labels=labels,
        rows=rows,
        hashes=_concatenate(train.hashes, val.hashes),
        lengths=_concatenate(train.lengths, val.lengths),
    )
    if rows is not None and train.listing is val.listing and train.images is val.images:  # parts of one listing
        return merged.take(np.argsort(rows))
    if train.listing is None or val.listing is None:
        raise ConfigError(
            "data.folds needs image files, or a data.dataset without a split val; this one has a val split"
        )
    name, paths = f"{train.listing.folder}+{val.listing.folder}", PathArray.from_list([*merged.paths])
    listing = chosen_images(train.root, name, train.classes, paths, labels)
    return replace(merged, listing=listing, rows=None)


def _concatenate(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    return None if one is None or other is None else np.concatenate([one, other])
