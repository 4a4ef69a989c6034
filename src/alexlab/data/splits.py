"""A folder of images as splits: which files, of which classes. Imports no torch.

Four layouts are understood:
    (a) root/{train,val[,test]}/<class>/...    the splits as they stand, under these or similar names, see `layout`
    (b) root/<class>/...                       split here, by a hash of each file's path
    (c) root/train/<class>/... [root/test/...] without val: a part of train becomes val
    (d) root.csv                               a manifest: a row for each image, with its class and split
"""

import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from alexlab.data.decode import decode
from alexlab.data.hash_split import split_by_hash
from alexlab.data.hidden_names import format_counts, is_hidden
from alexlab.data.image_file import Decoding
from alexlab.data.layout import SPLITS, find_layout
from alexlab.data.listing import (
    HEIF_EXTENSIONS,
    HEIF_PACKAGE,
    IMAGE_EXTENSIONS,
    Listing,
    check_class_names,
    file_type,
    list_images,
)
from alexlab.data.manifest import ManifestRow, write_manifest
from alexlab.data.paths import PathArray
from alexlab.errors import DataError
from alexlab.output.escape import shown


class ImageStore(Protocol):
    """Decoded images by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Split:
    """The images of one split, in the order of torchvision's ImageFolder.

    Args:
        root: the folder that `paths` are relative to.
        classes: the names of all classes; the index of a name is its label.
        paths: relative paths of the files.
        labels: int64, one label for each path.
        listing: the list of files that these are of.
        rows: which images of that list these are; None for all.
        images: the decoded images of that listing, by row, uint8 (H, W, C); None where the files are decoded.
        hashes: uint8 (N, 32), the SHA-256 that each file must have; None where nobody asks.
        lengths: int64 (N,), the bytes of each file, where they are known without looking.
        shuffled: whether the images lie in random order.
    """

    root: str
    classes: Sequence[str]
    paths: Sequence[str]
    labels: np.ndarray
    listing: Listing | None = None
    rows: np.ndarray | None = None
    images: ImageStore | None = None
    hashes: np.ndarray | None = None
    lengths: np.ndarray | None = None
    shuffled: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def file_path(self, index: int) -> str:
        """Where an image lies, for people."""
        return os.path.join(self.root, self.paths[index])

    def file_size(self, index: int) -> int:
        """The bytes of an image's file; -1 where it is not there."""
        return self.file_state(index)[0]

    def file_state(self, index: int) -> tuple[int, int, int]:
        """Return the size of an image's file and when it was modified and changed, in ns; -1 if it is not there.

        Copying tools may restore the modification time; no tool can set the change time.
        """
        if self.lengths is not None:
            return int(self.lengths[index]), 0, 0
        try:
            status = os.stat(self.file_path(index))
        except OSError:
            return -1, -1, -1
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def load(self, index: int, decoding: Decoding) -> np.ndarray:
        """An image, uint8 (H, W, channels).

        Raises:
            ImageError: when it cannot be read.
        """
        if self.images is not None:
            return self.images[index if self.rows is None else int(self.rows[index])]
        sha256 = None if self.hashes is None else self.hashes[index].tobytes()
        return decode(self.file_path(index), decoding, sha256)

    def sample_indices(self, count: int) -> list[int]:
        """Numbers of at most so many images that stand for all: evenly spaced ones or, in random order, the first."""
        count = min(count, len(self))
        if self.shuffled:
            return list(range(count))
        return np.unique(np.linspace(0, len(self) - 1, count).round().astype(int)).tolist()

    def class_counts(self) -> list[int]:
        """Number of images of each class, in the order of `classes`."""
        found: list[int] = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        return found


@dataclass(frozen=True)
class Splits:
    """The splits of one data set over one vocabulary of classes, that of the training split.

    Args:
        train, val, test: the splits; there may be no test split.
        auto_split: true where alexlab has divided the files itself.
        notes: what a person should know about how they came about.
    """

    train: Split
    val: Split
    test: Split | None = None
    auto_split: bool = False
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def classes(self) -> Sequence[str]:
        return self.train.classes

    def items(self) -> Iterator[tuple[str, Split]]:
        """The splits that there are, by name."""
        yield "train", self.train
        yield "val", self.val
        if self.test is not None:
            yield "test", self.test

    def hashes_of(self, listing: Listing) -> np.ndarray | None:
        """The SHA-256 of each file of a list that the splits are of, uint8 (N, 32); None where nobody asks for them."""
        found = np.zeros((len(listing.paths), 32), np.uint8)
        for _, split in self.items():
            if split.listing is listing:
                if split.hashes is None:
                    return None
                found[slice(None) if split.rows is None else split.rows] = split.hashes
        return found

    def write_manifest(self, path: Path) -> None:
        """Writes one row for each image; columns that nobody has looked up stay empty."""
        write_manifest(
            (
                ManifestRow(relative, label=split.classes[label], split=name)
                for name, split in self.items()
                for relative, label in zip(split.paths, split.labels.tolist(), strict=True)
            ),
            path,
        )


def find_splits(
    root: str,
    *,
    val_fraction: float,
    test_fraction: float,
    val_split: str = "val",
    split_seed: int = 0,
    folders: Mapping[str, str | None] | None = None,
    cache_dir: Path | None = None,
) -> Splits:
    """The splits of the data set at `root`, in whichever layout it is.

    Args:
        root: the data set's folder.
        val_fraction, test_fraction: the parts of each class, 0..1, that become val and test where they are made here.
        val_split: `val`, or `test` to validate on the test split.
        split_seed: another number gives another division of the files.
        folders: the folder of each split, see `find_layout`; None, or only nulls, to find them by their names.
        cache_dir: where the list of files is kept for the next start; None for nowhere.

    Raises:
        DataError: when the folder is missing, empty, or its splits do not fit together.
    """
    from alexlab.data.manifest_splits import read_manifest_splits  # which is made of this module's splits

    if root.lower().endswith(".csv") and os.path.isfile(root):
        if any((folders or {}).values()):
            raise DataError(f"data.splits names folders, and must be null for a manifest; data.root is {shown(root)}")
        return read_manifest_splits(root)
    check_root(root)
    check_val_split(val_split)
    if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise DataError(
            "data.val_fraction must lie between 0 and 1, and leave something to train on beside data.test_fraction; "
            f"got {val_fraction} and {test_fraction}"
        )
    layout = find_layout(root, folders)
    train_folder, val_folder, test_folder = map(layout.folder, SPLITS)
    if not layout.folders:
        return _divided_folder(root, val_fraction, test_fraction, val_split, split_seed, cache_dir)
    if train_folder is None:
        found = ", ".join(f"{split}={shown(layout.folder(split) or '.')}" for split in layout.folders)
        raise DataError(
            f"there must be a folder to train on in {shown(root)}, which has only {found}: data.splits.train=FOLDER names it"
        )

    notes = list(layout.notes)
    train = scan_folder(root, train_folder, cache_dir=cache_dir, notes=notes)
    test = None if test_folder is None else scan_folder(root, test_folder, train.classes, cache_dir, notes)
    if val_split == "test":
        if test is None:
            raise DataError(f"data.val_split=test needs the folder {os.path.join(root, 'test')}, which is not there")
        notes.append("validating on the test split (data.val_split=test): its scores are no estimate for unseen images")
        return Splits(train, test, None, notes=(*notes, *missing_class_notes("test", test)))
    if val_folder is not None:
        val = scan_folder(root, val_folder, train.classes, cache_dir, notes)
        missing = (*missing_class_notes("val", val), *(missing_class_notes("test", test) if test else ()))
        return Splits(train, val, test, notes=(*notes, *missing))
    parts = _divide(train, {"val": val_fraction}, split_seed)
    notes.append(
        f"there is no val folder: {len(parts['val'])} of {len(train)} training images became the validation split"
    )
    return Splits(parts["train"], parts["val"], test, auto_split=True, notes=tuple(notes))


def scan_folder(
    root: str,
    folder: str = "",
    classes: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    notes: list[str] | None = None,
    owner: str = "the training split",
) -> Split:
    """The images below `root/folder/<class>/` as one split.

    Args:
        root: the data set's folder; paths are relative to it.
        folder: the split's folder inside root, or nothing.
        classes: the vocabulary; by default the names of the class folders, sorted.
        cache_dir: as for `find_splits`.
        notes: takes what a person should know.
        owner: of the vocabulary, for messages.

    Raises:
        DataError: when there is no image, a class folder is empty, a class is not in the vocabulary, or names are too alike.
    """
    top = os.path.join(root, folder)
    listing = list_images(root, folder, cache_dir=cache_dir)
    if not listing.classes:
        raise DataError(
            f"{top} must hold one folder of images per class; found no folder in it, and {_count_images(top)} images"
        )
    check_class_names(listing.classes, top)
    labels = listing.labels if classes is None else _relabelled(top, listing.classes, listing.labels, classes, owner)
    counts = np.bincount(listing.labels, minlength=len(listing.classes))
    if not len(listing.paths):
        some = listing.classes[:5]
        raise DataError(
            f"{top} holds no images: looked for {', '.join(IMAGE_EXTENSIONS)} in {len(listing.classes)} class folders "
            f"({', '.join(some)}{', ...' if len(listing.classes) > len(some) else ''})"
        )
    empty = [os.path.join(top, name) for name, count in zip(listing.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"every class folder must hold an image; empty: {', '.join(map(shown, empty))} (fill it or remove it)"
        )
    if classes is None and len(listing.classes) < 2:
        raise DataError(f"a classifier needs at least 2 classes; {top} has one, {listing.classes[0]}")
    if notes is not None:
        notes += _left_out(top, listing)
    return Split(root, list(classes or listing.classes), listing.paths, labels, listing)


def check_root(root: str, *, missing: str = "there is no such folder") -> None:
    """Raises DataError unless there is such a folder; of a relative path the message gives the absolute one too."""
    if os.path.isdir(root):
        return
    what = "it is a file" if os.path.exists(root) else missing
    whole = "" if os.path.isabs(root) else f" (looked for {shown(os.path.abspath(root))})"
    raise DataError(f"data.root must be a folder of images, one folder per class; got {shown(root)!r}: {what}{whole}")


def _left_out(top: str, listing: Listing) -> Iterator[str]:
    """Yield a note for each kind of file that a listing leaves out."""
    if listing.ignored:
        kinds = {kind or "without extension": count for kind, count in listing.ignored.items()}
        hint = f"; reading HEIC needs {HEIF_PACKAGE}" if kinds.keys() & set(HEIF_EXTENSIONS) else ""
        yield f"{top}: files that are no images are left out: {format_counts(kinds)}{hint}"
    if listing.hidden:
        yield f"{top}: hidden files and folders are left out: {format_counts(listing.hidden)}"
    if listing.special_files:
        names = ", ".join(f"{shown(path)} ({kind})" for path, kind in listing.special_files[:5])
        more = f", ... ({len(listing.special_files)})" if len(listing.special_files) > 5 else ""
        yield f"{top}: only regular files are read, which these are not: {names}{more}"
    beside = _count_images(top)
    if beside:
        yield f"{top}: {beside} images beside the class folders are left out"


def _relabelled(place: str, own: Sequence[str], labels: np.ndarray, classes: Sequence[str], owner: str) -> np.ndarray:
    """The labels by another vocabulary; names are equal when their Unicode forms are."""
    known = {unicodedata.normalize("NFC", name): label for label, name in enumerate(classes)}
    found = [known.get(unicodedata.normalize("NFC", name)) for name in own]
    unknown = [name for name, label in zip(own, found, strict=True) if label is None]
    if unknown:
        raise DataError(f"every class must be in {owner}; {place} has {_some(unknown)}, {owner} has {_some(classes)}")
    return np.array(found, np.int64)[labels]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:20])) + (f", ... ({len(names)})" if len(names) > 20 else "")


def relabel(split: Split, classes: Sequence[str], owner: str) -> Split:
    """A split with the labels of another vocabulary, that of `owner`, a few words for messages.

    Raises:
        DataError: when the other vocabulary has not all of its classes.
    """
    used, places = np.unique(split.labels, return_inverse=True)
    names = [split.classes[label] for label in used]
    return replace(split, classes=list(classes), labels=_relabelled(split.root, names, places, classes, owner))


def _count_images(top: str) -> int:
    with os.scandir(top) as entries:
        names = [entry.name for entry in entries if not is_hidden(entry.name) and file_type(entry) == stat.S_IFREG]
    return sum(name.lower().endswith(IMAGE_EXTENSIONS) for name in names)


def _divided_folder(
    root: str, val_fraction: float, test_fraction: float, val_split: str, seed: int, cache_dir: Path | None
) -> Splits:
    notes: list[str] = []
    whole = scan_folder(root, cache_dir=cache_dir, notes=notes)
    fractions = {"val": val_fraction} | ({"test": test_fraction} if test_fraction else {})
    if val_split == "test":
        raise DataError(f"data.val_split=test needs the folder {os.path.join(root, 'test')}, which is not there")
    parts = _divide(whole, fractions, seed)
    sizes = ", ".join(f"{name} {len(split)}" for name, split in parts.items())
    notes.append(f"{len(whole)} images divided by a hash of their paths: {sizes}")
    assert whole.listing is not None
    below = [place.split("/") for place in whole.listing.folders]
    inner = [{parts[1] for parts in below if parts[0] == name and len(parts) == 2} for name in whole.classes]
    if len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        notes.append(
            f"each class folder holds {', '.join(map(shown, sorted(inner[0])))}, which are taken neither for splits nor for "
            "classes: data.splits.train=FOLDER names a split"
        )
    return Splits(parts["train"], parts["val"], parts.get("test"), auto_split=True, notes=tuple(notes))


def _divide(whole: Split, fractions: dict[str, float], seed: int) -> dict[str, Split]:
    parts = split_by_hash(whole.paths, whole.labels, whole.classes, fractions, seed)
    return {name: part_of(whole, rows) for name, rows in parts.items()}


def part_of(whole: Split, rows: np.ndarray) -> Split:
    """Return the images of a split that stand in some rows of its list."""
    assert isinstance(whole.paths, PathArray)
    return Split(whole.root, whole.classes, whole.paths.take(rows), whole.labels[rows], whole.listing, rows)


def check_val_split(val_split: str) -> None:
    """Raises DataError unless it is `val` or `test`."""
    if val_split not in ("val", "test"):
        raise DataError(f"data.val_split must be val or test; got {val_split!r}")


def missing_class_notes(name: str, split: Split) -> tuple[str, ...]:
    """A note where a split has no image of some class."""
    missing = [split.classes[label] for label, count in enumerate(split.class_counts()) if not count]
    return (f"the {name} split has no image of {', '.join(missing)}",) if missing else ()
