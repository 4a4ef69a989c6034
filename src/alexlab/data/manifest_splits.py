"""Splits from a manifest, and splits whose files must match a manifest."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from alexlab.data.class_names import check_class_names
from alexlab.data.layout import SPLITS
from alexlab.data.listing import chosen_images
from alexlab.data.manifest import ManifestRow, locator, read_manifest
from alexlab.data.paths import PathArray
from alexlab.data.splits import Split, Splits
from alexlab.errors import DataError
from alexlab.output.escape import shown
from alexlab.output.numbers import counted


def read_manifest_splits(manifest: str) -> Splits:
    """Return the splits that a manifest assigns.

    Its paths are absolute or relative to its folder, or to the folder in its column `root`, which gives the images the same
    paths as a dataset in that folder. They may lead anywhere: the files are only read.

    Raises:
        DataError: if the manifest lacks a training or validation split, or assigns a class or split that is missing or invalid.
    """
    folder = os.path.dirname(manifest) or "."
    rows = list(read_manifest(manifest, folder).values())
    roots = sorted({row.root for row in rows}) or [""]
    if len(roots) > 1:
        raise DataError(f"the root of all images must be the same; {manifest} has {', '.join(map(repr, roots[:3]))}")
    root = os.path.join(folder, roots[0]) if roots[0] else folder
    classes = _check_rows(rows, manifest)
    label_of = {name: label for label, name in enumerate(classes)}
    used = [row for row in rows if row.split]
    labels = np.array([label_of[row.label] for row in used], np.int64)
    paths = PathArray.from_list([row.path for row in used])
    listing = chosen_images(root, os.path.basename(manifest), classes, paths, labels)
    unverified = [row.path for row in used if not row.sha256]
    hashes = None if len(unverified) == len(used) else _hashes([row.sha256 or "0" * 64 for row in used])
    whole = Split(root, classes, paths, labels, listing, hashes=hashes)
    parts = {split: whole.take(np.flatnonzero([row.split == split for row in used])) for split in SPLITS}
    verified = "" if hashes is None else ", and each file must have its SHA-256"
    notes = [f"the splits are those of {manifest}{verified}"]
    if hashes is not None and unverified:
        notes.append(
            f"{manifest}: {counted(len(unverified), 'image')} without a SHA-256 may have any content, such as "
            f"{shown(unverified[0])}"
        )
    if len(used) < len(rows):
        notes.append(f"{manifest}: skipped {counted(len(rows) - len(used), 'image')} without a split")
    return Splits(parts["train"], parts["val"], parts["test"] if len(parts["test"]) else None, notes=notes)


def add_manifest_hashes(splits: Splits, manifest: str) -> Splits:
    """Return the splits with the SHA-256 that a manifest has for each of their files, which reading a file then requires.

    Raises:
        DataError: if a file is missing from the manifest, or has no SHA-256 there.
    """
    located = locator(splits.train.root)
    known = read_manifest(manifest, splits.train.root)
    parts: dict[str, Split] = {}
    for name, split in splits.items():
        rows = [known.get(located(path), ManifestRow(path)) for path in split.paths]
        missing = [path for path, row in zip(split.paths, rows, strict=True) if not row.sha256]
        if missing:
            raise DataError(
                f"data.manifest={manifest} must have the sha256 of every image; it lacks {len(missing)} of the {name} split, "
                f"such as {shown(missing[0])}"
            )
        parts[name] = replace(split, hashes=_hashes([row.sha256 for row in rows]))
    return replace(splits, train=parts["train"], val=parts["val"], test=parts.get("test"))


def _check_rows(rows: Sequence[ManifestRow], manifest: str) -> list[str]:
    """Check that a run can use the rows of a manifest, and return the classes of its training split, sorted."""
    for name in ("train", "val"):
        if not any(row.split == name for row in rows):
            raise DataError(f"a training manifest must have rows of the split {name}; {manifest} has none")
    invalid = next((row for row in rows if row.split not in ("", *SPLITS)), None)
    if invalid is not None:
        raise DataError(
            f"the split of an image must be train, val, test or empty; {manifest} has {invalid.split!r} for "
            f"{shown(invalid.path)}"
        )
    unlabelled = next((row for row in rows if not row.label), None)
    if unlabelled is not None:
        raise DataError(
            f"every row of a training manifest needs a class; {manifest} has none for {shown(unlabelled.path)}"
        )
    classes = sorted({row.label for row in rows if row.split == "train"})
    unknown = sorted({row.label for row in rows} - set(classes))
    if unknown:
        raise DataError(f"every class must be in the training split; {manifest} has {', '.join(unknown)} elsewhere")
    if len(classes) < 2:
        raise DataError(f"a classifier needs at least 2 classes; {manifest} has one, {classes[0]}")
    check_class_names(classes, manifest)
    return classes


def _hashes(digests: Sequence[str]) -> np.ndarray:
    try:
        return np.frombuffer(b"".join(map(bytes.fromhex, digests)), np.uint8).reshape(len(digests), 32)
    except ValueError as error:
        raise DataError(f"a sha256 must have 64 hexadecimal digits: {error}") from error
