"""Divides images into splits by a hash of their paths: for runs on an undivided folder and for `prepare.py action=split`.

Imports no torch.
"""

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
    """Divides each class by a hash of the relative path: the same on every machine, whatever the order of the files.

    Args:
        paths, labels, classes: the images.
        fractions: the part of each class, 0..1, that goes to each split but train, which takes the rest.
        seed: another number gives another division.
        groups: for each image the name of what must stay together, such as a person; a split takes whole groups until it
            has its part: of each class, or of all images where groups have images of several classes.

    Returns:
        The rows of each split, in order.

    Raises:
        DataError: when a class has too few images or groups.
    """
    units: dict[str, list[int]] = {}
    for row, name in enumerate(groups if groups is not None else paths):
        units.setdefault(name, []).append(row)
    mixed = any(labels[rows].min() != labels[rows].max() for rows in units.values())
    strata: dict[str, list[str]] = {"all": []} if mixed else {f"class {name}": [] for name in classes}
    for name, rows in units.items():
        strata["all" if mixed else f"class {classes[labels[rows[0]]]}"].append(name)
    members: dict[str, list[int]] = {name: [] for name in ("train", *fractions)}
    for stratum, names in strata.items():
        if len(names) < len(members):
            what = "images" if groups is None else "groups"
            raise DataError(
                f"{stratum} needs at least {len(members)} {what} to be divided into "
                f"{' and '.join(members)}; it has {len(names)}"
            )
        names.sort(key=lambda name: _path_hash(name, seed))
        total = sum(len(units[name]) for name in names)
        left = len(members) - 1  # splits that still need a unit, train among them
        for part, fraction in fractions.items():
            wanted, count = max(1, round(fraction * total)), 0
            while count < wanted and len(names) > left:
                rows = units[names.pop(0)]
                members[part].extend(rows)
                count += len(rows)
            left -= 1
        members["train"].extend(row for name in names for row in units[name])
    absent = set(range(len(classes))) - set(labels[members["train"]].tolist())
    if absent:
        raise DataError(f"every class must be in train; all groups of {classes[min(absent)]} are in another split")
    return {name: np.sort(np.array(rows, np.int64)) for name, rows in members.items()}


def _path_hash(path: str, seed: int) -> bytes:
    portable = unicodedata.normalize("NFC", path.replace(os.sep, "/"))
    return hashlib.blake2b(f"{seed}:{portable}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
