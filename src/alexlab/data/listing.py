"""List of the image files below a folder, from one walk over it or from the cache."""

import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alexlab.data import listing_cache
from alexlab.data.file_types import (
    IMAGE_EXTENSIONS,
    SPECIAL_FILES,
    broken_links,
    class_folders,
    file_type,
    is_broken_link,
)
from alexlab.data.hidden_names import hidden_kind, is_hidden
from alexlab.data.paths import TERMINATOR, PathArray
from alexlab.errors import DataError
from alexlab.output.escape import shown

_EXTENSIONS = tuple(form.encode() for extension in IMAGE_EXTENSIONS for form in (extension, extension.upper()))
_DOT = ord(".")


@dataclass(frozen=True)
class Finding:
    """Irregularity of a file or folder.

    Args:
        code: stable identifier, for scripts.
        path: path relative to the dataset's folder.
        text: description that continues a sentence after the path, such as "is a folder that may not be read".
    """

    code: str
    path: str
    text: str


@dataclass(frozen=True)
class Listing:
    """Image files below `root/folder/<class>/`, in the order of torchvision's ImageFolder.

    Args:
        root: folder of the dataset, to which paths are relative.
        folder: folder of the split inside the root, or "", or the name from `chosen_images`.
        classes: sorted names of the class folders.
        paths: paths of the images.
        labels: int64 (N,), class index of each image.
        ignored: number of other files by extension.
        folders: state of every folder that was read, by its path relative to the root, see `listing_cache.folder_state`.
        hidden: number of hidden files and folders that were skipped, by `hidden_kind`.
        special_files: path and type of entries that are named like images but are not regular files.
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


def list_images(
    root: str, folder: str = "", *, cache_dir: Path | None = None, findings: list[Finding] | None = None
) -> Listing:
    """List the images of each class folder in `root/folder` recursively, as torchvision does, but without hidden files.

    Args:
        root: folder of the dataset.
        folder: folder of the split inside the root, or "".
        cache_dir: folder for cached listings, which replace the walk as long as no folder has changed; None for no cache.
        findings: list to which unreadable folders and links are added, which are then skipped; None raises the first.

    Raises:
        DataError: if a folder cannot be read, or a link cannot be resolved or leads back to a folder that was already read.
    """
    path = None if cache_dir is None else listing_cache.listing_path(cache_dir, root, folder)
    if path is not None:
        fields = listing_cache.read_listing(path, root)
        if fields is not None:
            return Listing(root, folder, **fields)
    start_ns = time.time_ns()
    listing = _walk(root, folder, findings)
    if path is not None:
        settled_ns = start_ns - int(listing_cache.SETTLE_S * 1e9)
        if listing_cache.detects_changes(listing.folders.values(), settled_ns):
            listing_cache.write_listing(vars(listing), path)
    return listing


def chosen_images(root: str, name: str, classes: Sequence[str], paths: PathArray, labels: np.ndarray) -> Listing:
    """Return the listing of images that are not all of one folder.

    Args:
        root, classes, paths, labels: as in `Listing`.
        name: name of the choice. A hash of the paths is added to it, because packs have the name of their listing.
    """
    digest = hashlib.blake2b(paths.block.tobytes(), digest_size=4).hexdigest()
    return Listing(root, f"{name}-{digest}", classes, paths, labels, {}, {})


def _walk(root: str, folder: str, findings: list[Finding] | None = None) -> Listing:
    top = os.path.join(root, folder)
    classes, walk = class_folders(top), _Walk(root, findings)
    walk.folders[folder] = listing_cache.folder_state(os.stat(top))
    walk.hidden.update(hidden_kind(name) for name in os.listdir(top) if is_hidden(name))
    for name in broken_links(top):
        walk.report_broken_link(folder, name)
    blocks: list[bytes] = []
    labels = [np.zeros(0, np.int64)]
    for label, name in enumerate(classes):
        num_images = 0
        for subfolder, names in walk.class_files(os.path.join(folder, name)):
            prefix = os.fsencode(subfolder) + b"/"
            blocks.append(prefix + (TERMINATOR + prefix).join(names) + TERMINATOR)
            num_images += len(names)
        labels.append(np.full(num_images, label, np.int64))
    return Listing(
        root,
        folder,
        classes,
        PathArray.from_block(np.frombuffer(b"".join(blocks), np.uint8)),
        np.concatenate(labels),
        walk.ignored,
        walk.folders,
        walk.hidden,
        sorted(walk.special_files),
    )


class _Walk:
    """State of one walk: everything that it found except images, see `Listing`.

    Args:
        root: folder of the dataset.
        findings: as for `list_images`.
    """

    def __init__(self, root: str, findings: list[Finding] | None) -> None:
        self.root, self.findings = root, findings
        self.folders: dict[str, list[int]] = {}
        self.visited: dict[tuple[int, int], str] = {}  # folder by its device and number
        self.ignored: Counter[str] = Counter()
        self.hidden: Counter[str] = Counter()
        self.special_files: list[tuple[str, str]] = []

    def class_files(self, top: str) -> list[tuple[str, list[bytes]]]:
        """Return the folders below a class folder, sorted by path, each with the sorted names of its images."""
        found: list[tuple[str, list[bytes]]] = []
        pending = [top]
        while pending:
            folder = pending.pop()
            status = os.stat(os.path.join(self.root, folder))
            other = self.visited.setdefault((status.st_dev, status.st_ino), folder)
            if other != folder and status.st_ino:  # some network file systems number no folders
                own = f"{other}/".startswith(f"{top}/")
                fault = f"the same folder as {shown(other)}, of another class"
                fault = "a link back to a folder that was already read" if own else fault
                self._report(Finding("loop", folder, f"is {fault}"))
                continue
            self.folders[folder] = listing_cache.folder_state(status)
            try:
                names = self._images(folder, pending)
            except PermissionError:
                self._report(Finding("no_permission", folder, "is a folder that may not be read"))
                continue
            if names:
                found.append((folder, names))
        return sorted(found)

    def _images(self, folder: str, pending: list[str]) -> list[bytes]:
        """Return the sorted names of the images in a folder, and add its folders to `pending`.

        Names are bytes here: decoding and encoding a million of them takes as long as reading them. Only links cost a stat
        call: the type of other entries comes with their name.
        """
        with os.scandir(os.fsencode(os.path.join(self.root, folder))) as scanned:
            entries = list(scanned)
        names = [
            entry.name
            for entry in entries
            if entry.name.endswith(_EXTENSIONS) and entry.name[0] != _DOT and entry.is_file(follow_symlinks=False)
        ]
        if len(names) < len(entries):
            known = set(names)
            names += [
                entry.name for entry in entries if entry.name not in known and self._is_image(folder, entry, pending)
            ]
        names.sort()
        return names

    def _is_image(self, folder: str, entry: os.DirEntry[bytes], pending: list[str]) -> bool:
        """Return whether an entry that the fast path has not recognized is an image; record what else it is."""
        name = os.fsdecode(entry.name)
        if is_hidden(name):
            self.hidden[hidden_kind(name)] += 1
            return False
        kind, has_extension = file_type(entry), name.lower().endswith(IMAGE_EXTENSIONS)  # .Jpg
        if kind == stat.S_IFDIR:
            pending.append(f"{folder}/{name}")
        elif has_extension and kind == stat.S_IFREG:
            return True
        elif has_extension:
            self.special_files.append((f"{folder}/{name}", SPECIAL_FILES.get(kind, "not a regular file")))
        elif is_broken_link(entry):
            self.report_broken_link(folder, name)
        else:
            self.ignored[os.path.splitext(name)[1].lower()] += 1
        return False

    def report_broken_link(self, folder: str, name: str) -> None:
        """Report a link that may be that of a folder of images."""
        text = "is a link that cannot be resolved: restore its target or remove the link"
        self._report(Finding("broken_link", os.path.join(folder, name), text))

    def _report(self, finding: Finding) -> None:
        if self.findings is None:
            raise DataError(f"{shown(os.path.join(self.root, finding.path))} {finding.text}")
        self.findings.append(finding)
