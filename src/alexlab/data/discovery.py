"""Splits of a dataset, from any of four layouts.

(a) root/{train,val[,test]}/<class>/...    split folders, under these or similar names, see `layout`
(b) root/<class>/...                       split here, by a hash of each file's path
(c) root/train/<class>/... [root/{val,test}/...] without val, or without test: a part of train becomes val or test
(d) root.csv                               manifest: class and split of each image
"""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from alexlab.data.hash_split import find_groups, split_by_hash
from alexlab.data.layout import SPLITS, Layout, find_layout
from alexlab.data.manifest_splits import read_manifest_splits
from alexlab.data.scan import check_root, scan_folder
from alexlab.data.splits import Split, Splits
from alexlab.errors import DataError
from alexlab.output.escape import shown


@dataclass(frozen=True)
class SplitOptions:
    """Options for datasets that lack a split.

    Args:
        val_fraction, test_fraction: fraction of each class, 0..1, that becomes val and test.
        val_split: `val`, or `test` to validate on the test split.
        split_seed: seed of the split.
        group: regular expression, see `find_groups`; None for no groups.
        cache_dir: folder for cached listings; None for no cache.
    """

    val_fraction: float
    test_fraction: float
    val_split: str
    split_seed: int
    group: str | None
    cache_dir: Path | None

    def __post_init__(self) -> None:
        check_val_split(self.val_split)
        if not (self.val_fraction > 0 and self.test_fraction >= 0 and self.val_fraction + self.test_fraction < 1):
            raise DataError(
                "data.val_fraction must be positive, data.test_fraction at least 0, and their sum less than 1; "
                f"got {self.val_fraction} and {self.test_fraction}"
            )


def find_splits(
    root: str,
    *,
    val_fraction: float,
    test_fraction: float,
    val_split: str = "val",
    split_seed: int = 0,
    group: str | None = None,
    folders: Mapping[str, str | None] | None = None,
    cache_dir: Path | None = None,
) -> Splits:
    """Return the splits of the dataset at `root`.

    Args:
        root: folder of the dataset, or a manifest.
        val_fraction, test_fraction: fraction of each class, 0..1, that becomes val and test if the dataset lacks them.
        val_split: `val`, or `test` to validate on the test split.
        split_seed: seed of the split.
        group: regular expression that finds a group in each path, see `find_groups`; a split made here has whole groups.
        folders: folder of each split, see `find_layout`; None, or only nulls, to recognize them by their names.
        cache_dir: folder for cached listings; None for no cache.

    Raises:
        DataError: if the folder is missing or empty, or its splits do not match.
    """
    if root.lower().endswith(".csv") and os.path.isfile(root):
        if any((folders or {}).values()):
            raise DataError(
                f"data.splits must be null for a manifest, which names the splits itself; got {shown(root)}"
            )
        if val_split != "val":
            raise DataError(
                f"data.val_split must be val for a manifest, which names the splits itself; got {val_split!r}"
            )
        return read_manifest_splits(root).with_missing_class_notes()
    check_root(root)
    options = SplitOptions(val_fraction, test_fraction, val_split, split_seed, group, cache_dir)
    layout = find_layout(root, folders)
    layout.check()
    splits = _from_split_folders(root, layout, options) if layout.folders else _from_class_folders(root, options)
    return replace(splits, notes=(*splits.notes, *_shared_folders(splits))).with_missing_class_notes()


def _shared_folders(splits: Splits) -> list[str]:
    """Return a note for each pair of splits that have a folder in common, through a link."""
    notes = []
    for (first, one), (second, other) in itertools.combinations(splits.items(), 2):
        if one.listing is None or other.listing is None or one.listing is other.listing:
            continue
        known = {tuple(state): folder for folder, state in one.listing.folders.items()}
        shared = [
            (known[tuple(state)], folder) for folder, state in other.listing.folders.items() if tuple(state) in known
        ]
        if shared:
            pair = " and ".join(shown(folder or ".") for folder in shared[0])
            notes.append(f"{second} has images of {first}: {pair} are the same folder, through a link")
    return notes


def check_val_split(val_split: str) -> None:
    """Check that `data.val_split` is `val` or `test`.

    Raises:
        DataError: if it is neither.
    """
    if val_split not in ("val", "test"):
        raise DataError(f"data.val_split must be val or test; got {val_split!r}")


def _from_split_folders(root: str, layout: Layout, options: SplitOptions) -> Splits:
    train_folder, val_folder, test_folder = map(layout.folder, SPLITS)
    if train_folder is None:
        found = ", ".join(f"{split}={shown(layout.folder(split) or '.')}" for split in layout.folders)
        raise DataError(
            f"{shown(root)} must have a training split; found only {found}. Name it: data.splits.train=FOLDER"
        )
    notes = list(layout.notes)
    train = scan_folder(root, train_folder, cache_dir=options.cache_dir, notes=notes)
    test = None if test_folder is None else scan_folder(root, test_folder, train.classes, options.cache_dir, notes)
    if options.val_split == "test":
        if test is None:
            raise _no_test_split(root)
        notes.append("validating on the test split (data.val_split=test): its scores do not estimate unseen images")
        return Splits(train, test, None, notes=tuple(notes))
    val = None if val_folder is None else scan_folder(root, val_folder, train.classes, options.cache_dir, notes)
    fractions = {"val": options.val_fraction} if val is None else {}
    if test is None and options.test_fraction:
        fractions["test"] = options.test_fraction
    parts = _split_by_hash(train, fractions, options) if fractions else {"train": train}
    for name in fractions:
        kind = {"val": "validation", "test": "test"}[name]
        notes.append(f"no {name} folder: {len(parts[name])} of {len(train)} training images became the {kind} split")
    return Splits(
        parts["train"],
        parts["val"] if val is None else val,
        parts.get("test", test),
        auto_split=bool(fractions),
        notes=tuple(notes),
    )


def _from_class_folders(root: str, options: SplitOptions) -> Splits:
    notes: list[str] = []
    whole = scan_folder(root, cache_dir=options.cache_dir, notes=notes)
    if options.val_split == "test":
        raise _no_test_split(root)
    fractions = {"val": options.val_fraction} | ({"test": options.test_fraction} if options.test_fraction else {})
    parts = _split_by_hash(whole, fractions, options)
    sizes = ", ".join(f"{name} {len(split)}" for name, split in parts.items())
    notes.append(f"{len(whole)} images split by a hash of their paths: {sizes}")
    repeated = _repeated_subfolders(whole)
    if repeated:
        notes.append(
            f"every class folder contains the folders {', '.join(map(shown, repeated))}, which are treated neither as splits nor "
            "as classes: to use a folder as a split, set data.splits.train=FOLDER"
        )
    return Splits(parts["train"], parts["val"], parts.get("test"), auto_split=True, notes=tuple(notes))


def _split_by_hash(whole: Split, fractions: dict[str, float], options: SplitOptions) -> dict[str, Split]:
    groups = None if options.group is None else find_groups(whole.paths, options.group, "data.group")
    rows = split_by_hash(whole.paths, whole.labels, whole.classes, fractions, options.split_seed, groups)
    return {name: whole.take(part) for name, part in rows.items()}


def _repeated_subfolders(whole: Split) -> list[str]:
    """Return the folders inside the class folders if there are several and every class has the same ones."""
    assert whole.listing is not None
    by_class: dict[str, set[str]] = {name: set() for name in whole.classes}
    for folder in whole.listing.folders:
        name, *inner = folder.split("/")
        if len(inner) == 1:
            by_class[name].add(inner[0])
    first = by_class[whole.classes[0]]
    return sorted(first) if len(first) > 1 and all(names == first for names in by_class.values()) else []


def _no_test_split(root: str) -> DataError:
    return DataError(f"data.val_split=test needs a test split; {os.path.join(root, 'test')} does not exist")
