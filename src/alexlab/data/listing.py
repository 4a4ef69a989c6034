"""Which image files lie below a folder: found by one walk, kept in an index so that the next start need not walk again.

Imports no torch.
"""

import hashlib
import json
import os
import shutil
import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from alexlab.data.hidden_names import hidden_kind, is_hidden
from alexlab.data.paths import END, PathArray
from alexlab.errors import DataError
from alexlab.output.escape import shown, writable
from alexlab.runs.atomic import atomic_dir

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
_ENDINGS = tuple(form.encode() for extension in IMAGE_EXTENSIONS for form in (extension, extension.upper()))
_DOT = ord(".")
VERSION = 3  # of the index
SETTLED_S = 2.0  # a folder that changed so recently may change again within the same tick of its clock
# What may bear the name of an image and would block a reader, or never end.
SPECIAL_FILES = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@dataclass(frozen=True)
class Finding:
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
        folders: every folder that was read, relative to root, with its state, see `_state`.
        hidden: number of hidden files and folders that were skipped, by `hidden_kind`.
        special_files: entries that have the name of an image and are no regular files: their path and what they are.
    """

    root: str
    folder: str
    classes: Sequence[str]
    paths: PathArray
    labels: np.ndarray
    ignored: dict[str, int]
    folders: dict[str, list[int]]
    hidden: dict[str, int] = field(default_factory=dict)
    special_files: Sequence[tuple[str, str]] = ()


def class_folders(top: str) -> list[str]:
    """Names of the folders in a folder, sorted, less the hidden ones."""
    with os.scandir(top) as entries:
        return sorted(entry.name for entry in entries if not is_hidden(entry.name) and file_type(entry) == stat.S_IFDIR)


def file_type(entry: "os.DirEntry[str] | os.DirEntry[bytes]") -> int:
    """Return the type of what an entry of a folder leads to, `stat.S_IFREG` and so on.

    A link to nowhere counts as a regular file: reading it gives the reason.
    """
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return stat.S_IFREG


def list_images(
    root: str, folder: str = "", *, cache_dir: Path | None = None, findings: list[Finding] | None = None
) -> Listing:
    """Lists the images of each class folder of `root/folder`, recursively, as torchvision's ImageFolder does, less the litter.

    Args:
        root: the data set's folder.
        folder: the split's folder inside root, or nothing.
        cache_dir: where the index is kept, which stands in for the walk as long as no folder has changed; None for no
            index.
        findings: takes what is wrong with folders, which is then left out; None raises the first.

    Raises:
        DataError: when a folder cannot be read, or links lead back into it.
    """
    place = None if cache_dir is None else cache_dir / folder_id(root) / f"index{index_suffix(folder)}"
    if place is not None:
        found = _read_index(place, root, folder)
        if found is not None:
            return found
    start_ns = time.time_ns()
    listing = _walk(root, folder, findings)
    if place is not None and _tells_changes(listing.folders.values(), start_ns - int(SETTLED_S * 1e9)):
        _write_index(listing, place)
    return listing


def _state(status: os.stat_result) -> list[int]:
    """Return what differs after an entry of a folder was added, removed or renamed.

    Tools restore the modification time (`cp -a`, `rsync -t`, `tar`, `touch -d`). They cannot set the change time, and a folder
    that replaces this one has another inode number.
    """
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _tells_changes(states: Iterable[list[int]], before_ns: int) -> bool:
    """Return whether a change after the walk is sure to change one of these states.

    It is not if a folder changed just now, nor on a file system that has one time for all of its folders, as those over
    object stores do.
    """
    changes = [changed_ns for _, changed_ns, _ in states]
    return max(changes) < before_ns and len(set(changes)) > 1


def index_suffix(folder: str) -> str:
    """Return the part of a file's name that stands for a split's folder inside root."""
    return f"-{quote(folder, safe=' ')}" if folder else ""


def folder_id(root: str) -> str:
    """A name for a folder, unlike that of any other: its own name and a hash of its whole path."""
    whole = os.path.realpath(root)
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in os.path.basename(whole))
    return f"{readable}-{hashlib.blake2b(os.fsencode(whole), digest_size=4).hexdigest()}"


def _walk(root: str, folder: str, findings: list[Finding] | None = None) -> Listing:
    top = os.path.join(root, folder)
    classes, found = class_folders(top), _Walk(root, findings)
    found.folders[folder] = _state(os.stat(top))
    found.hidden.update(hidden_kind(name) for name in os.listdir(top) if is_hidden(name))
    pieces: list[bytes] = []
    labels = []
    for label, name in enumerate(classes):
        count = 0
        for place, names in found.class_files(os.path.join(folder, name)):
            prefix = os.fsencode(place) + b"/"
            pieces.append(prefix + (END + prefix).join(names) + END)
            count += len(names)
        labels.append(np.full(count, label, np.int64))
    block = np.frombuffer(b"".join(pieces), np.uint8)
    every = np.concatenate(labels) if labels else np.zeros(0, np.int64)
    paths = PathArray.from_block(block)
    return Listing(
        root, folder, classes, paths, every, found.ignored, found.folders, found.hidden, sorted(found.special_files)
    )


class _Walk:
    """Entries other than images that one walk has found, see `Listing`.

    Args:
        root: the data set's folder.
        findings: as for `list_images`.
    """

    def __init__(self, root: str, findings: list[Finding] | None) -> None:
        self.root, self.findings = root, findings
        self.folders: dict[str, list[int]] = {}
        self.ignored: Counter[str] = Counter()
        self.hidden: Counter[str] = Counter()
        self.special_files: list[tuple[str, str]] = []

    def class_files(self, top: str) -> list[tuple[str, list[bytes]]]:
        """Return the folders below a class folder, in the order of their whole paths, each with its images' names, sorted."""
        visited: set[tuple[int, int]] = set()
        found: list[tuple[str, list[bytes]]] = []
        pending = [top]
        while pending:
            place = pending.pop()
            status = os.stat(os.path.join(self.root, place))
            if (status.st_dev, status.st_ino) in visited:
                _tell(
                    self.findings, Finding("loop", place, "is a link back to a folder that was already read"), self.root
                )
                continue
            visited.add((status.st_dev, status.st_ino))
            self.folders[place] = _state(status)
            try:
                names = self._images(place, pending)
            except PermissionError:
                _tell(self.findings, Finding("no_permission", place, "is a folder that may not be read"), self.root)
                continue
            if names:
                found.append((place, names))
        return sorted(found)

    def _images(self, place: str, pending: list[str]) -> list[bytes]:
        """Return the names of the images in a folder, sorted; its folders go to `pending`.

        Names are bytes here: to decode and encode a million of them takes as long as to read them. Links are asked where
        they lead to, other files are not: their type comes with the name.
        """
        with os.scandir(os.fsencode(os.path.join(self.root, place))) as found:
            entries = list(found)
        names = [
            n for e in entries if (n := e.name).endswith(_ENDINGS) and n[0] != _DOT and e.is_file(follow_symlinks=False)
        ]
        if len(names) < len(entries):
            known = set(names)
            for entry in entries:
                name = os.fsdecode(entry.name)
                if entry.name in known:
                    continue
                if is_hidden(name):
                    self.hidden[hidden_kind(name)] += 1
                    continue
                kind, is_image = file_type(entry), name.lower().endswith(IMAGE_EXTENSIONS)  # .Jpg
                if kind == stat.S_IFDIR:
                    pending.append(f"{place}/{name}")
                elif is_image and kind == stat.S_IFREG:
                    names.append(entry.name)
                elif is_image:
                    self.special_files.append((f"{place}/{name}", SPECIAL_FILES.get(kind, "no regular file")))
                else:
                    self.ignored[os.path.splitext(name)[1].lower()] += 1
        names.sort()
        return names


def _tell(findings: list[Finding] | None, finding: Finding, root: str) -> None:
    if findings is None:
        raise DataError(f"{shown(os.path.join(root, finding.path))} {finding.text}")
    findings.append(finding)


def _read_index(place: Path, root: str, folder: str) -> Listing | None:
    """The listing that was kept, unless there is none, or a folder of it has changed."""
    try:
        about: dict[str, Any] = json.loads((place / "index.json").read_text())
        if about["version"] != VERSION or about["extensions"] != list(IMAGE_EXTENSIONS):
            return None
        for name, state in about["folders"].items():
            if _state(os.stat(os.path.join(root, name))) != state:
                return None
        block, ends, labels = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("paths", "ends", "labels"))
        if len(labels) != len(ends) - 1 or len(block) != ends[-1]:
            return None
        rest = [about[name] for name in ("ignored", "folders", "hidden", "special_files")]
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return Listing(root, folder, about["classes"], PathArray(block, ends), labels, *rest)


def _write_index(listing: Listing, place: Path) -> None:
    """Keeps a listing; a place that cannot be written is no reason to fail."""
    about = {
        "version": VERSION,
        "root": os.path.realpath(listing.root),
        "extensions": IMAGE_EXTENSIONS,
        "classes": listing.classes,
        "ignored": listing.ignored,
        "folders": listing.folders,
        "hidden": listing.hidden,
        "special_files": listing.special_files,
    }
    try:
        shutil.rmtree(place, ignore_errors=True)
        with atomic_dir(place) as folder:
            np.save(folder / "paths.npy", listing.paths.block)
            np.save(folder / "ends.npy", listing.paths.ends)
            np.save(folder / "labels.npy", listing.labels)
            (folder / "index.json").write_text(json.dumps(about))
    except (OSError, UnicodeError):
        return


def check_class_names(names: Sequence[str], where: str) -> None:
    """Raises DataError for names that are no UTF-8, or that differ in case or Unicode form only."""
    for name in names:
        if writable(name) != name:
            raise DataError(f"the names of class folders must be UTF-8; {shown(where)} has {shown(name)}")
    for first, second in confusable_names(names):
        raise DataError(
            f"the names of classes must differ in more than case or Unicode form; {shown(where)} has "
            f"{first!r} and {second!r} ({first!a}, {second!a}): rename or merge them"
        )


def confusable_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in case or Unicode form only, the one that stands first in front."""
    firsts: dict[str, str] = {}
    pairs = []
    for name in names:
        first = firsts.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if first != name:
            pairs.append((first, name))
    return pairs
