"""Train, validation and test split of a dataset: files, labels and classes."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from alexlab.data.crop import CropRule
from alexlab.data.decode import decode
from alexlab.data.image_file import DEFAULT_DECODING, Decoding, read_image
from alexlab.data.listing import Listing
from alexlab.data.manifest import ManifestRow, write_manifest
from alexlab.data.paths import PathArray
from alexlab.data.spacing import evenly_spaced
from alexlab.errors import DataError, ImageError
from alexlab.output.escape import shown


class ImageStore(Protocol):
    """Decoded images by row, such as a pack or shards."""

    def __len__(self) -> int: ...
    def load(self, row: int, decoding: Decoding, crop: CropRule | None = None) -> np.ndarray:
        """Return an image as `alexlab.data.decode.decode` does; a pack ignores `decoding`, which is that of its writer."""


@runtime_checkable
class FileStore(Protocol):
    """Store that has the files of its images, such as shards."""

    def content(self, row: int) -> bytes:
        """Return the content of an image's file."""


@dataclass(frozen=True)
class Split:
    """Images of one split, in the order of torchvision's ImageFolder.

    Args:
        root: folder to which `paths` are relative.
        classes: names of all classes, in the order of their labels.
        paths: relative paths of the files.
        labels: int64 (N,).
        listing: list of files of which this split is a part.
        rows: int64 (N,), rows of the listing that belong to the split; None for all.
        images: store of decoded images, uint8 (H, W, C), by row of the listing; None to decode the files.
        hashes: uint8 (N, 32), required SHA-256 of each file; zeros, or None for all files, to accept any content.
        lengths: int64 (N,), bytes of each file if they are known in advance.
        shuffled: whether the images are in random order rather than sorted by class.
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
        """Return the path of an image, including the root."""
        return os.path.join(self.root, self.paths[index])

    def file_size(self, index: int) -> int:
        """Return the bytes of an image's file; -1 if it is missing."""
        return self.file_state(index)[0]

    def file_state(self, index: int) -> tuple[int, int, int]:
        """Return the bytes of an image's file, its modification and its change time in ns; -1 for each if it is missing.

        Copying tools may restore the modification time; no tool can set the change time.
        """
        if self.lengths is not None:
            return int(self.lengths[index]), 0, 0
        try:
            status = os.stat(self.file_path(index))
        except OSError:
            return -1, -1, -1
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def content(self, index: int) -> bytes | None:
        """Return the content of an image's file; None if it is unreadable or the images are not files."""
        if isinstance(self.images, FileStore):
            return self.images.content(index if self.rows is None else int(self.rows[index]))
        if self.lengths is not None:
            return None
        try:
            return read_image(self.file_path(index), DEFAULT_DECODING)
        except ImageError:
            return None

    def load(self, index: int, decoding: Decoding, *, crop: CropRule | None = None) -> np.ndarray:
        """Return an image, uint8 (H, W, channels), or the part of it that `alexlab.data.decode.decode` returns for `crop`.

        Raises:
            ImageError: if it is unreadable.
        """
        if self.images is not None:
            return self.images.load(index if self.rows is None else int(self.rows[index]), decoding, crop)
        return decode(self.file_path(index), decoding, self.sha256(index), crop=crop)

    def sha256(self, index: int) -> bytes | None:
        """Return the required SHA-256 of a file; None to accept any content."""
        return self.hashes[index].tobytes() if self.hashes is not None and self.hashes[index].any() else None

    def sample_indices(self, count: int) -> list[int]:
        """Return the indices of at most `count` representative images: evenly spaced, or the first of a shuffled split."""
        return list(range(min(count, len(self)))) if self.shuffled else evenly_spaced(len(self), count)

    def class_counts(self) -> list[int]:
        """Return the number of images of each class."""
        counts: list[int] = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        return counts

    def missing_class_notes(self, name: str) -> tuple[str, ...]:
        """Return a note that the split, called `name`, lacks some classes; nothing if it has all of them."""
        missing = [self.classes[label] for label, count in enumerate(self.class_counts()) if not count]
        return (f"the {name} split has no image of {', '.join(missing)}",) if missing else ()

    def take(self, indices: np.ndarray) -> "Split":
        """Return the images at some indices, in that order."""
        paths = self.paths
        return replace(
            self,
            paths=paths.take(indices) if isinstance(paths, PathArray) else [paths[index] for index in indices.tolist()],
            labels=self.labels[indices],
            rows=indices if self.rows is None else self.rows[indices],
            hashes=None if self.hashes is None else self.hashes[indices],
            lengths=None if self.lengths is None else self.lengths[indices],
        )

    def relabel(self, classes: Sequence[str], owner: str) -> "Split":
        """Return the split with the labels of another vocabulary.

        Args:
            classes: class names in the order of the new labels.
            owner: owner of that vocabulary, for the message.

        Raises:
            DataError: if the new vocabulary lacks a class of the split.
        """
        used, labels = np.unique(self.labels, return_inverse=True)
        names = [self.classes[label] for label in used]
        return replace(self, classes=list(classes), labels=map_labels(self.root, names, labels, classes, owner))


@dataclass(frozen=True)
class Splits:
    """Splits of one dataset, which share the classes of the training split.

    Args:
        train, val, test: the splits; test is optional.
        auto_split: whether alexlab has split the files itself.
        notes: remarks for the user on how the splits were found.
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
        """Yield the name of each split, and the split."""
        yield "train", self.train
        yield "val", self.val
        if self.test is not None:
            yield "test", self.test

    def with_missing_class_notes(self) -> "Splits":
        """Return the splits with a note for each split that lacks some classes."""
        missing = [note for name, split in self.items() for note in split.missing_class_notes(name)]
        return replace(self, notes=(*self.notes, *missing))

    def hashes_of(self, listing: Listing) -> np.ndarray | None:
        """Return the required SHA-256 of each file of a listing, uint8 (N, 32); None if any content is accepted."""
        hashes = np.zeros((len(listing.paths), 32), np.uint8)
        for _, split in self.items():
            if split.listing is listing:
                if split.hashes is None:
                    return None
                hashes[slice(None) if split.rows is None else split.rows] = split.hashes
        return hashes

    def write_manifest(self, path: Path) -> None:
        """Write a manifest of all splits, with path, class and split of each image."""
        write_manifest(
            (
                ManifestRow(relative, label=split.classes[label], split=name)
                for name, split in self.items()
                for relative, label in zip(split.paths, split.labels.tolist(), strict=True)
            ),
            path,
        )


def map_labels(where: str, names: Sequence[str], labels: np.ndarray, classes: Sequence[str], owner: str) -> np.ndarray:
    """Translate labels from one vocabulary to another; names match regardless of their Unicode form.

    Args:
        where: folder that the labels come from, for the message.
        names: class names of `labels`.
        labels: int64 (N,).
        classes: class names in the order of the new labels.
        owner: owner of the new vocabulary, for the message.

    Raises:
        DataError: if a name is missing from `classes`.
    """
    known = {unicodedata.normalize("NFC", name): label for label, name in enumerate(classes)}
    new_labels = [known.get(unicodedata.normalize("NFC", name)) for name in names]
    unknown = [name for name, label in zip(names, new_labels, strict=True) if label is None]
    if unknown:
        raise DataError(
            f"every class must be in {owner}; {where} has {_first_names(unknown)}, {owner} has {_first_names(classes)}"
        )
    return np.array(new_labels, np.int64)[labels]


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:20])) + (f", ... ({len(names)})" if len(names) > 20 else "")
