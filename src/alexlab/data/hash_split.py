"""Splits, folds and fractions by a hash of each path: the same on every machine, regardless of the order of the files."""

import hashlib
import os
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from alexlab.errors import ConfigError, DataError
from alexlab.output.escape import shown


def split_by_hash(
    paths: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    fractions: Mapping[str, float],
    seed: int,
    groups: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Split each class by a hash of the relative paths.

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
    units = _units(paths, groups)
    splits: dict[str, list[int]] = {name: [] for name in ("train", *fractions)}
    for stratum, names in _strata(units, labels, classes).items():
        if len(names) < len(splits):
            raise DataError(
                f"{stratum} must have at least {len(splits)} {_kind(groups)} to be split into {' and '.join(splits)}; "
                f"it has {len(names)}"
            )
        _assign(_by_hash(names, seed), units, fractions, splits)
    missing = set(range(len(classes))) - set(labels[splits["train"]].tolist())
    if missing:
        raise DataError(f"every class must be in train; all groups of {classes[min(missing)]} are in another split")
    return {name: np.sort(np.array(rows, np.int64)) for name, rows in splits.items()}


def assign_folds(
    paths: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    num_folds: int,
    seed: int,
    groups: Sequence[str] | None = None,
) -> np.ndarray:
    """Return the fold of each image, int64 (N,), from 0; arguments as for `split_by_hash`.

    In the order of the hash, each image or group joins the fold that has the fewest images of its class, then the fewest of all.
    Groups with images of several classes are assigned by scikit-learn's StratifiedGroupKFold.

    Raises:
        DataError: if a class has fewer than two images or groups, or there are too few for the folds.
    """
    units = _units(paths, groups)
    strata = _strata(units, labels, classes)
    if "all" in strata:
        return _mixed_group_folds(units, labels, num_folds, _by_hash(strata["all"], seed))
    folds, sizes = np.zeros(len(paths), np.int64), [0] * num_folds
    for stratum, names in strata.items():
        if len(names) < 2:
            raise DataError(f"{stratum} must have at least 2 {_kind(groups)} to be in two folds; it has {len(names)}")
        counts = [0] * num_folds
        for name in _by_hash(names, seed):
            fold = min(range(num_folds), key=lambda number: (counts[number], sizes[number], number))
            folds[units[name]] = fold
            counts[fold] += len(units[name])
            sizes[fold] += len(units[name])
    return folds


def _mixed_group_folds(
    units: Mapping[str, Sequence[int]], labels: np.ndarray, num_folds: int, order: Sequence[str]
) -> np.ndarray:
    """Return the fold of each image if groups have images of several classes; of equal choices, the order decides."""
    from sklearn.model_selection import StratifiedGroupKFold

    if len(order) < num_folds:
        raise DataError(f"data.folds must be at most the number of groups, {len(order)}; got {num_folds}")
    groups, folds = np.zeros(len(labels), np.int64), np.zeros(len(labels), np.int64)
    for number, name in enumerate(order):
        groups[units[name]] = number
    try:
        with warnings.catch_warnings(action="ignore"):  # of classes with fewer images than folds
            for fold, (_, rows) in enumerate(StratifiedGroupKFold(num_folds).split(labels, labels, groups)):
                folds[rows] = fold
    except ValueError as error:
        raise DataError(f"data.folds={num_folds} is too large: {error}") from error
    return folds


def first_by_hash(
    paths: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    fraction: float,
    seed: int,
    groups: Sequence[str] | None = None,
) -> np.ndarray:
    """Return the sorted indices of a fraction of each class, the first in the order of the hash and at least one.

    A smaller fraction is a part of each larger one. Arguments as for `split_by_hash`.
    """
    units = _units(paths, groups)
    kept: list[int] = []
    for names in _strata(units, labels, classes).values():
        wanted, count = max(1, round(fraction * sum(len(units[name]) for name in names))), 0
        for name in _by_hash(names, seed):
            if count >= wanted:
                break
            kept += units[name]
            count += len(units[name])
    return np.sort(np.array(kept, np.int64))


def find_groups(paths: Sequence[str], pattern: str, key: str) -> list[str]:
    """Return the group of each path: the first group of a regular expression, or its whole match.

    Args:
        paths: relative paths of the images.
        pattern: regular expression, searched for in each path.
        key: config key of the pattern, for messages.

    Raises:
        ConfigError: if the pattern is not a valid regular expression.
        DataError: if it does not match a path.
    """
    expression = compile_pattern(pattern, key)
    groups = []
    for path in paths:
        match = expression.search(path)
        name = None if match is None else match[1] if expression.groups else match[0]
        if name is None:
            raise DataError(f"{key}={pattern!r} must find the group in every path; it does not in {shown(path)}")
        groups.append(name)
    return groups


def compile_pattern(pattern: str, key: str) -> re.Pattern[str]:
    """Compile a regular expression.

    Raises:
        ConfigError: if it is invalid.
    """
    try:
        return re.compile(str(pattern))  # a YAML file may have a number
    except re.error as error:
        raise ConfigError(f"{key} must be a regular expression; got {pattern!r}: {error}") from error


def _units(paths: Sequence[str], groups: Sequence[str] | None) -> dict[str, list[int]]:
    """Return the rows of each unit that stays together: a group, or a single image."""
    units: dict[str, list[int]] = {}
    for row, name in enumerate(paths if groups is None else groups):
        units.setdefault(name, []).append(row)
    return units


def _kind(groups: Sequence[str] | None) -> str:
    return "images" if groups is None else "groups"


def _by_hash(names: Sequence[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: _path_hash(name, seed))


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
