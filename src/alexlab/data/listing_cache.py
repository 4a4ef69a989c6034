"""Cached lists of files, valid until a folder changes, so that the next start does not walk the dataset again."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from alexlab.data.file_types import IMAGE_EXTENSIONS
from alexlab.data.paths import PathArray
from alexlab.records.atomic import atomic_dir

VERSION = 4  # of the file format
SETTLE_S = 2.0  # a folder that changed more recently may change again within the same clock tick of the file system
MAX_SUFFIX = 100  # characters of a split's folder in the name of a cache; a letter that is not ASCII takes 6 or 9
FIELDS = ("classes", "ignored", "folders", "hidden", "special_files")  # of Listing, stored as JSON


def listing_path(cache_dir: Path, root: str, folder: str) -> Path:
    """Return the folder in which the list of `root/folder` is cached."""
    return cache_dir / folder_id(root) / f"index{folder_suffix(folder)}"


def folder_id(root: str) -> str:
    """Return a unique name for a folder: its own name and a hash of its whole path."""
    path = os.path.realpath(root)
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in os.path.basename(path))
    return f"{readable}-{hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()}"


def folder_suffix(folder: str) -> str:
    """Return the suffix by which the name of a cache identifies a split's folder inside the root."""
    name = quote(folder, safe=" ")
    if len(name) > MAX_SUFFIX:
        name = f"{name[:40]}-{hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()}"
    return f"-{name}" if folder else ""


def folder_state(status: os.stat_result) -> list[int]:
    """Return numbers of which at least one changes when an entry of the folder is added, removed or renamed.

    Tools restore the modification time (`cp -a`, `rsync -t`, `tar`, `touch -d`), but cannot set the change time, and a folder
    that replaces this one has another inode number.
    """
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def detects_changes(states: Iterable[list[int]], before_ns: int) -> bool:
    """Return whether every later change is certain to change one of these folder states.

    It is not if a folder changed after `before_ns`, nor on file systems that give all folders the same time, as those over
    object stores do.
    """
    changes = [changed_ns for _, changed_ns, _ in states]
    return max(changes) < before_ns and len(set(changes)) > 1


def read_listing(path: Path, root: str) -> dict[str, Any] | None:
    """Return the cached fields of a Listing, or None if they are missing, corrupt or out of date."""
    try:
        index: dict[str, Any] = json.loads((path / "index.json").read_text())
        if index["version"] != VERSION or index["extensions"] != list(IMAGE_EXTENSIONS):
            return None
        for folder, state in index["folders"].items():
            if folder_state(os.stat(os.path.join(root, folder))) != state:
                return None
        block, ends, labels = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("paths", "ends", "labels"))
        if len(labels) != len(ends) - 1 or len(block) != ends[-1]:
            return None
        fields = {name: index[name] for name in FIELDS}
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return {"paths": PathArray(block, ends), "labels": labels, **fields}


def write_listing(fields: Mapping[str, Any], path: Path) -> None:
    """Cache the fields of a Listing; errors are ignored, because the cache is only an optimization."""
    index = {
        "version": VERSION,
        "root": os.path.realpath(fields["root"]),
        "extensions": IMAGE_EXTENSIONS,
        **{name: fields[name] for name in FIELDS},
    }
    try:
        shutil.rmtree(path, ignore_errors=True)
        with atomic_dir(path) as unfinished:
            np.save(unfinished / "paths.npy", fields["paths"].block)
            np.save(unfinished / "ends.npy", fields["paths"].ends)
            np.save(unfinished / "labels.npy", fields["labels"])
            (unfinished / "index.json").write_text(json.dumps(index))
    except (OSError, UnicodeError):
        return
