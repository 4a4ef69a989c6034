"""Split by a hash of the path, for runs on a folder without splits and for `prepare.py action=split`."""

import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from alexlab.errors import DataError


def split_by_hash(
    paths: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    fractions: Mapping[str, float],
    seed: int,
    groups: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Split each class by a hash of the relative paths: the same on every machine, regardless of the order of the files.

    Args:
        paths: relative paths of the images.
        labels: int64 (N,).
        classes: names of the classes.
        fractions: fraction of each class, 0..1, for each split but train, which gets the rest.
        seed: seed of the hash.
        groups: group of each image, such as a person: groups are not divided, so a split takes whole groups until it has its
            fraction. It is a fraction of each class, or of all images if a group has images of several classes.

    Returns:
        Sorted row indices of each split, int64.

    Raises:
        DataError: if a class has too few images or groups, or none of its groups is in train.
    """
    units: dict[str, list[int]] = {}  # units that are not divided: the rows of a group, or one row
    for row, name in enumerate(groups if groups is not None else paths):
        units.setdefault(name, []).append(row)
    splits: dict[str, list[int]] = {name: [] for name in ("train", *fractions)}
    for stratum, names in _strata(units, labels, classes).items():
        if len(names) < len(splits):
            kind = "images" if groups is None else "groups"
            raise DataError(
                f"{stratum} must have at least {len(splits)} {kind} to be split into {' and '.join(splits)}; "
                f"it has {len(names)}"
            )
        names.sort(key=lambda name: _path_hash(name, seed))
        _assign(names, units, fractions, splits)
    missing = set(range(len(classes))) - set(labels[splits["train"]].tolist())
    if missing:
        raise DataError(f"every class must be in train; all groups of {classes[min(missing)]} are in another split")
    return {name: np.sort(np.array(rows, np.int64)) for name, rows in splits.items()}


def _strata(units: Mapping[str, Sequence[int]], labels: np.ndarray, classes: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of the units of each class, or of all classes together if a unit has images of several."""
    if any(labels[rows].min() != labels[rows].max() for rows in units.values()):
        return {"all": list(units)}
    strata: dict[str, list[str]] = {f"class {name}": [] for name in classes}
    for name, rows in units.items():
        strata[f"class {classes[labels[rows[0]]]}"].append(name)
    return strata


def _assign(
    names: Sequence[str],
    units: Mapping[str, Sequence[int]],
    fractions: Mapping[str, float],
    splits: dict[str, list[int]],
) -> None:
    """Add the rows of one stratum to the splits: as many units as each fraction needs, and the rest to train."""
    total = sum(len(units[name]) for name in names)
    remaining = list(names)
    for number, (split, fraction) in enumerate(fractions.items()):
        num_waiting = len(fractions) - number  # splits that still need a unit after this one, train among them
        wanted, count = max(1, round(fraction * total)), 0
        while count < wanted and len(remaining) > num_waiting:
            rows = units[remaining.pop(0)]
            splits[split].extend(rows)
            count += len(rows)
    splits["train"].extend(row for name in remaining for row in units[name])


def _path_hash(path: str, seed: int) -> bytes:
    portable = unicodedata.normalize("NFC", path.replace(os.sep, "/"))
    return hashlib.blake2b(f"{seed}:{portable}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
