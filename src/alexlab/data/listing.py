"""Which image files lie below a folder: found by one walk, kept in an index so that the next start need not walk again.

A list of a million Python strings takes 100 MB in each process that touches it. Here the paths are one block of bytes and
the labels one array, which the loader processes share with their parent. Imports no torch.
"""

import hashlib
import json
import os
import shutil
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, overload

import numpy as np

from alexlab.data.tree import written_whole
from alexlab.errors import DataError

HEIF_EXTENSIONS = (".heic", ".heif")
HAS_HEIF = find_spec("pillow_heif") is not None
HEIF_PACKAGE = "pillow-heif (pip install pillow-heif)"
# Those of torchvision.datasets.folder.IMG_EXTENSIONS, so that a folder without the others gives the same list of files; then
# other names of JPEG, and what torchvision leaves out.
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jfif", ".jpe", ".avif"),
    *(HEIF_EXTENSIONS if HAS_HEIF else ()),
)
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")
_ENDINGS = tuple(form.encode() for extension in IMAGE_EXTENSIONS for form in (extension, extension.upper()))
_DOT = ord(".")
END = b"\0"  # after each path in a block
VERSION = 2  # of the index
SETTLED_S = 2.0  # a folder that changed so recently may change again within the same tick of its clock


class Paths(Sequence[str]):
    """Relative paths as one block of bytes; an item is decoded when it is asked for.

    Args:
        block: the paths, one after the other, as the file system has them, each closed by a zero byte.
        ends: where each path ends in the block, with its zero, int64, and a 0 in front.
        rows: which of them these are, and in which order; None for all.
    """

    def __init__(self, block: np.ndarray, ends: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.block, self.ends, self.rows = block, ends, rows

    @classmethod
    def of(cls, paths: Sequence[str]) -> "Paths":
        """The paths of a list."""
        return cls.of_block(np.frombuffer(b"".join(os.fsencode(path) + END for path in paths), np.uint8))

    @classmethod
    def of_block(cls, block: np.ndarray) -> "Paths":
        """All the paths of a block."""
        return cls(block, _ends(block))

    def take(self, rows: np.ndarray) -> "Paths":
        """Some of the paths, in the given order; the block is shared."""
        return Paths(self.block, self.ends, rows if self.rows is None else self.rows[rows])

    def __len__(self) -> int:
        return len(self.ends) - 1 if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = index % len(self) if self.rows is None else int(self.rows[index])
        return os.fsdecode(self.block[self.ends[row] : self.ends[row + 1] - 1].tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))  # noqa: B905

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a file or a folder.

    Args:
        code: fixed, for scripts.
        path: relative to the data set's folder.
        text: what it is, as the rest of a sentence that begins with the path.
    """

    code: str
    path: str
    text: str


@dataclass(frozen=True)
class Listing:
    """The images below `root/folder/<class>/`, in the order of torchvision's ImageFolder.

    Args:
        root: the data set's folder; paths are relative to it.
        folder: the split's folder inside root, or nothing.
        classes: names of the class folders, sorted.
        paths: of the images.
        labels: int64, for each path the index of its class.
        ignored: how many other files there are, by extension.
        folders: every folder that was read, relative to root, with the time of its last change, in nanoseconds.
    """

    root: str
    folder: str
    classes: Sequence[str]
    paths: Paths
    labels: np.ndarray
    ignored: dict[str, int]
    folders: dict[str, int]


def hidden(name: str) -> bool:
    """Whether a file or folder is no part of the data: dot files, AppleDouble files, what file managers leave behind."""
    return name.startswith(".") or name in LITTER


def shown(path: str | Path) -> str:
    """A path for a message: bytes that are no UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def class_folders(top: str) -> list[str]:
    """Names of the folders in a folder, sorted, less the hidden ones."""
    with os.scandir(top) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not hidden(entry.name))


def list_images(
    root: str, folder: str = "", *, cache_dir: Path | None = None, problems: list[Problem] | None = None
) -> Listing:
    """Lists the images of each class folder of `root/folder`, recursively, as torchvision's ImageFolder does, less the litter.

    Args:
        root: the data set's folder.
        folder: the split's folder inside root, or nothing.
        cache_dir: where the index is kept, of which the next call reads it as long as no folder has changed; None for no
            index.
        problems: takes what is wrong with folders, which is then left out; None raises the first.

    Raises:
        DataError: when a folder cannot be read, or links lead back into it.
    """
    place = None if cache_dir is None else cache_dir / identity(root) / f"index{f'-{folder}' if folder else ''}"
    if place is not None:
        found = _read_index(place, root, folder)
        if found is not None:
            return found
    start_ns = time.time_ns()
    listing = _walk(root, folder, problems)
    if place is not None and max(listing.folders.values(), default=0) < start_ns - SETTLED_S * 1e9:
        _write_index(listing, place)
    return listing


def identity(root: str) -> str:
    """A name for a folder, unlike that of any other: its own name and a hash of its whole path."""
    whole = os.path.realpath(root)
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in os.path.basename(whole))
    return f"{readable}-{hashlib.blake2b(os.fsencode(whole), digest_size=4).hexdigest()}"


def _walk(root: str, folder: str, problems: list[Problem] | None = None) -> Listing:
    top = os.path.join(root, folder)
    classes = class_folders(top)
    folders = {folder: os.stat(top).st_mtime_ns}
    ignored: Counter[str] = Counter()
    pieces: list[bytes] = []
    labels = []
    for label, name in enumerate(classes):
        count = 0
        for place, names in _class_files(root, os.path.join(folder, name), folders, ignored, problems):
            prefix = os.fsencode(place) + b"/"
            pieces.append(prefix + (END + prefix).join(names) + END)
            count += len(names)
        labels.append(np.full(count, label, np.int64))
    block = np.frombuffer(b"".join(pieces), np.uint8)
    every = np.concatenate(labels) if labels else np.zeros(0, np.int64)
    return Listing(root, folder, classes, Paths(block, _ends(block)), every, dict(ignored), folders)


def _class_files(
    root: str, top: str, folders: dict[str, int], ignored: Counter[str], problems: list[Problem] | None
) -> list[tuple[str, list[bytes]]]:
    """Folders below a class folder, in the order of their whole paths, each with the names of its images, sorted."""
    visited: set[tuple[int, int]] = set()
    found: list[tuple[str, list[bytes]]] = []
    pending = [top]
    while pending:
        place = pending.pop()
        status = os.stat(os.path.join(root, place))
        if (status.st_dev, status.st_ino) in visited:
            _tell(problems, Problem("loop", place, "is a link back to a folder that was already read"), root)
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[place] = status.st_mtime_ns
        try:
            names, others = _images(os.path.join(root, place))
        except PermissionError:
            _tell(problems, Problem("no_permission", place, "is a folder that may not be read"), root)
            continue
        if names:
            found.append((place, names))
        for name, is_folder in others:
            if is_folder:
                pending.append(f"{place}/{name}")
            else:
                ignored[os.path.splitext(name)[1].lower()] += 1
    return sorted(found)


def _images(folder: str) -> tuple[list[bytes], list[tuple[str, bool]]]:
    """The names of the images in a folder, sorted, and its other entries that are not hidden: whether each is a folder.

    Names are bytes here: to decode and encode a million of them takes as long as to read them.
    """
    with os.scandir(os.fsencode(folder)) as found:
        entries = list(found)
    names = [n for e in entries if (n := e.name).endswith(_ENDINGS) and n[0] != _DOT and not e.is_dir()]
    others: list[tuple[str, bool]] = []
    if len(names) < len(entries):
        known = set(names)
        for entry in entries:
            name = os.fsdecode(entry.name)
            if entry.name in known or hidden(name):
                continue
            if name.lower().endswith(IMAGE_EXTENSIONS) and not entry.is_dir():  # .Jpg
                names.append(entry.name)
            else:
                others.append((name, entry.is_dir()))
    names.sort()
    return names, others


def _ends(block: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(block == END[0]) + 1])


def _tell(problems: list[Problem] | None, problem: Problem, root: str) -> None:
    if problems is None:
        raise DataError(f"{shown(os.path.join(root, problem.path))} {problem.text}")
    problems.append(problem)


def _read_index(place: Path, root: str, folder: str) -> Listing | None:
    """The listing that was kept, unless there is none, or a folder of it has changed."""
    try:
        about: dict[str, Any] = json.loads((place / "index.json").read_text())
        if about["version"] != VERSION or about["extensions"] != list(IMAGE_EXTENSIONS):
            return None
        for name, changed_ns in about["folders"].items():
            if os.stat(os.path.join(root, name)).st_mtime_ns != changed_ns:
                return None
        block, ends, labels = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("paths", "ends", "labels"))
    except (OSError, ValueError, KeyError):
        return None
    return Listing(root, folder, about["classes"], Paths(block, ends), labels, about["ignored"], about["folders"])


def _write_index(listing: Listing, place: Path) -> None:
    """Keeps a listing; a place that cannot be written is no reason to fail."""
    about = {
        "version": VERSION,
        "root": os.path.realpath(listing.root),
        "extensions": IMAGE_EXTENSIONS,
        "classes": listing.classes,
        "ignored": listing.ignored,
        "folders": listing.folders,
    }
    try:
        shutil.rmtree(place, ignore_errors=True)
        with written_whole(place) as folder:
            np.save(folder / "paths.npy", listing.paths.block)
            np.save(folder / "ends.npy", listing.paths.ends)
            np.save(folder / "labels.npy", listing.labels)
            (folder / "index.json").write_text(json.dumps(about))
    except (OSError, UnicodeError):
        return


def check_class_names(names: Sequence[str], where: str) -> None:
    """Raises DataError for names that are no UTF-8, or that differ in case or Unicode form only."""
    for name in names:
        if shown(name) != name:
            raise DataError(f"the names of class folders must be UTF-8; {shown(where)} has {shown(name)}")
    for first, second in alike(names):
        raise DataError(
            f"the names of classes must differ in more than case or Unicode form; {shown(where)} has "
            f"{first!r} and {second!r} ({first!a}, {second!a}): rename or merge them"
        )


def alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in case or Unicode form only, the one that stands first in front."""
    firsts: dict[str, str] = {}
    pairs = []
    for name in names:
        first = firsts.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if first != name:
            pairs.append((first, name))
    return pairs
