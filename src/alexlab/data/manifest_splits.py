"""Splits that a manifest lists, and splits whose files a manifest must have. Imports no torch."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from alexlab.data.layout import SPLITS
from alexlab.data.listing import Listing, check_class_names
from alexlab.data.manifest import ManifestRow, locator, read_manifest
from alexlab.data.paths import PathArray
from alexlab.data.splits import Split, Splits, part_of
from alexlab.errors import DataError
from alexlab.output.escape import shown


def read_manifest_splits(manifest: str) -> Splits:
    """The splits of a manifest; its paths are relative to it, or absolute, and may lie anywhere: they are only read."""
    root = os.path.dirname(manifest) or "."
    rows = list(read_manifest(manifest, root).values())
    found = {name: [number for number, row in enumerate(rows) if row.split == name] for name in SPLITS}
    for name in ("train", "val"):
        if not found[name]:
            raise DataError(f"a manifest that is trained on must have rows of the split {name}; {manifest} has none")
    other = next((row for row in rows if row.split not in ("", *SPLITS)), None)
    if other is not None:
        raise DataError(
            f"the split of an image must be train, val, test or empty; {manifest} has {other.split!r} for {shown(other.path)}"
        )
    unknown_class = next((row for row in rows if not row.label), None)
    if unknown_class is not None:
        raise DataError(
            f"a manifest that is trained on must have a class in each row; {manifest} has none for {shown(unknown_class.path)}"
        )
    classes = sorted({rows[number].label for number in found["train"]})
    unknown = sorted({row.label for row in rows} - set(classes))
    if unknown:
        raise DataError(f"every class must be in the training split; {manifest} has {', '.join(unknown)} elsewhere")
    if len(classes) < 2:
        raise DataError(f"a classifier needs at least 2 classes; {manifest} has one, {classes[0]}")
    check_class_names(classes, manifest)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[row.label] for row in rows], np.int64)
    listing = Listing(
        root, os.path.basename(manifest), classes, PathArray.from_list([row.path for row in rows]), labels, {}, {}
    )
    hashes = _hashes([row.sha256 for row in rows]) if all(row.sha256 for row in rows) else None
    whole = Split(root, classes, listing.paths, labels, listing)

    def part(name: str) -> Split:
        chosen = np.array(found[name], np.int64)
        return replace(part_of(whole, chosen), hashes=None if hashes is None else hashes[chosen])

    notes = [
        f"the splits are those of {manifest}" + ("" if hashes is None else ", and each file must have its SHA-256")
    ]
    unused = len(rows) - sum(map(len, found.values()))
    if unused:
        notes.append(f"{unused} images of {manifest} are in no split and are not used")
    return Splits(part("train"), part("val"), part("test") if found["test"] else None, notes=notes)


def add_manifest_hashes(splits: Splits, manifest: str) -> Splits:
    """The splits with the SHA-256 that a manifest has for each of their files, which is then asked of every file read.

    Raises:
        DataError: when a file is not in the manifest, has no SHA-256 there, or not its size.
    """
    located = locator(splits.train.root)
    known = read_manifest(manifest, splits.train.root)
    parts: dict[str, Split] = {}
    for name, split in splits.items():
        listed = [known.get(located(path), ManifestRow(path)) for path in split.paths]
        missing = [path for path, row in zip(split.paths, listed, strict=True) if not row.sha256]
        if missing:
            raise DataError(
                f"every image must be in data.manifest={manifest} with its sha256; {len(missing)} of the {name} split "
                f"are not, such as {shown(missing[0])}"
            )
        parts[name] = replace(split, hashes=_hashes([row.sha256 for row in listed]))
    return replace(splits, train=parts["train"], val=parts["val"], test=parts.get("test"))


def _hashes(digits: Sequence[str]) -> np.ndarray:
    try:
        return np.frombuffer(b"".join(map(bytes.fromhex, digits)), np.uint8).reshape(len(digits), 32)
    except ValueError as error:
        raise DataError(f"a sha256 must have 64 hexadecimal digits: {error}") from error
