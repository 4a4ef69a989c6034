"""Writes a data set as train, val and test: from class folders, from names of files, or from a table. Imports no torch."""

import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexlab.data.class_names import check_class_names, folder_name_problem
from alexlab.data.file_types import IMAGE_EXTENSIONS, class_folders, file_type
from alexlab.data.hash_split import split_by_hash
from alexlab.data.hidden_names import is_hidden
from alexlab.data.layout import find_layout
from alexlab.data.listing import list_images
from alexlab.data.manifest import ManifestRow, locator, write_manifest
from alexlab.data.scan import check_root
from alexlab.data.table import read_table
from alexlab.errors import ConfigError, DataError, DiskError
from alexlab.output.escape import shown
from alexlab.output.progress import track
from alexlab.runs.atomic import atomic_dir, disk_error

LINKS = ("copy", "hardlink", "symlink", "manifest")


@dataclass(frozen=True)
class UnsplitDataset:
    """Images that are not yet divided.

    Args:
        root: what `paths` are relative to.
        paths: of the images.
        classes: the name of each image's class.
        groups: for each image, what must stay together; None where each image stands for itself.
    """

    root: str
    paths: Sequence[str]
    classes: Sequence[str]
    groups: Sequence[str] | None = None


def find_unsplit(
    root: str,
    *,
    labels: str | None,
    pattern: str,
    group: str | None,
    folders: Mapping[str, str | None] | None = None,
) -> UnsplitDataset:
    """Finds the images and their classes.

    Args:
        root: a folder of class folders, or of images whose names tell the class.
        labels: a CSV file with the columns path and class; its paths are relative to root, or absolute and inside of it.
        pattern: a regular expression with a group `class`, matched at the start of the name of each file of a flat folder.
        group: a regular expression, searched for in each path; what it finds, or its first group, must stay together.
        folders: as for `find_splits`; `train=.` takes all folders as classes.

    Raises:
        DataError: when there are no images, a name does not match, or no folder can have the name of a class.
    """
    check_root(root)
    if labels is not None:
        paths, classes = _table(labels, root)
    elif class_folders(root):
        layout = find_layout(root, folders)
        if layout.folder("train") != "" and layout.folders:
            raise DataError(f"{root} is divided already: it has {', '.join(class_folders(root))}")
        listing = list_images(root)
        paths, classes = list(listing.paths), [listing.classes[label] for label in listing.labels.tolist()]
    else:
        paths, classes = _flat(root, pattern)
    if not paths:
        raise DataError(f"{root} holds no images: looked for {', '.join(IMAGE_EXTENSIONS)}")
    check_class_names(sorted(set(classes)), labels or root)
    return UnsplitDataset(root, paths, classes, None if group is None else [_group(path, group) for path in paths])


def _flat(root: str, pattern: str) -> tuple[list[str], list[str]]:
    expression = _expression(pattern, "pattern")
    if "class" not in expression.groupindex:
        raise ConfigError(f"pattern must have a group for the class, (?P<class>...); got {pattern!r}")
    with os.scandir(root) as entries:
        paths = sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(IMAGE_EXTENSIONS)
            and not is_hidden(entry.name)
            and file_type(entry) == stat.S_IFREG
        )
    classes = []
    for path in paths:
        match = expression.match(path)
        if match is None or match["class"] is None:
            raise DataError(
                f"the name of every file must tell its class by pattern={pattern!r}; {shown(path)} does not"
            )
        _check_class(match["class"], f"pattern={pattern!r}, file {shown(path)}")
        classes.append(match["class"])
    return paths, classes


def _check_class(name: str, where: str) -> None:
    reason = folder_name_problem(name)
    if reason is not None:
        raise DataError(f"{where}: a class must be a plain folder name; got {name!r}: {reason}")


def _table(labels: str, root: str) -> tuple[list[str], list[str]]:
    """The paths, relative to root and without `.` or `..`, and the classes of a table, which may come from a stranger.

    Raises:
        DataError: by line, when a file is listed twice, missing or outside of root, or no folder can have the name of a class.
    """
    located, whole = locator(root), os.path.realpath(root)
    lines: dict[str, str] = {}
    classes = []
    for where, cells in read_table(labels, what="labels", needed=("path", "class")):
        path = os.path.relpath(located(cells["path"]), whole)
        if not cells["path"] or path.split(os.sep)[0] == os.pardir:
            raise DataError(f"{where}: a path must lead to a file inside {shown(root)}; got {shown(cells['path'])!r}")
        if path in lines:
            raise DataError(f"{where}: each file must be listed once; {shown(path)} is also in {lines[path]}")
        if not os.path.isfile(os.path.join(whole, path)):
            raise DataError(f"{where}: there is no file {shown(path)} in {shown(root)}")
        if any(map(is_hidden, path.split(os.sep))):
            raise DataError(f"{where}: hidden files are no part of a data set; got {shown(path)}")
        _check_class(cells["class"], where)
        lines[path] = where.rpartition(", ")[2]
        classes.append(cells["class"])
    return list(lines), classes


def _expression(text: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"{key} must be a regular expression; got {text!r}: {error}") from error


def _group(path: str, pattern: str) -> str:
    match = _expression(pattern, "group").search(path)
    if match is None:
        raise DataError(f"every path must tell its group by group={pattern!r}; {shown(path)} does not")
    found: str | None = match[1] if match.re.groups else match[0]
    if found is None:
        raise DataError(f"every path must tell its group by group={pattern!r}; the first group is not in {shown(path)}")
    return found


def assign_splits(source: UnsplitDataset, fractions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """The rows of each split: the same division that a run makes of the undivided folder.

    Raises:
        ConfigError: when the fractions leave nothing to train on.
        DataError: when a class is too small, or there is only one.
    """
    if not all(0 <= fraction < 1 for fraction in fractions.values()) or not 0 < sum(fractions.values()) < 1:
        raise ConfigError(f"data.val_fraction and data.test_fraction must leave something to train on; got {fractions}")
    classes = sorted(set(source.classes))
    if len(classes) < 2:
        raise DataError(f"a classifier needs at least 2 classes; {source.root} has {', '.join(classes)}")
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[name] for name in source.classes], np.int64)
    wanted = {name: fraction for name, fraction in fractions.items() if fraction}
    return split_by_hash(source.paths, labels, classes, wanted, seed, source.groups)


def write_split(source: UnsplitDataset, parts: Mapping[str, np.ndarray], out: Path, link: str) -> None:
    """Writes `out/<split>/<class>/<file>`, or only `out/split.csv`, whole or not at all.

    Args:
        source: the images.
        parts: the rows of each split.
        out: a folder that is not there, or empty.
        link: `copy`, `hardlink` or `symlink` the files, or only list them: `manifest`.

    Raises:
        ConfigError: when `link` is none of these, or the folder is not empty.
        DataError: when a file cannot be read or linked, or two files would have one name.
        DiskError: when the folder cannot be written.
    """
    if link not in LINKS:
        raise ConfigError(f"link must be one of {', '.join(LINKS)}; got {link!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out must be a new or an empty folder; {out} is not")
    try:
        if out.is_dir():
            out.rmdir()
        with atomic_dir(out) as folder:
            _write(source, parts, out, folder, link)
    except OSError as error:
        raise DiskError(f"out must be a folder that can be written; got {shown(out)}: {error.strerror}") from error


def _write(source: UnsplitDataset, parts: Mapping[str, np.ndarray], out: Path, folder: Path, link: str) -> None:
    rows = [(split, int(row)) for split, chosen in parts.items() for row in chosen]
    if link != "manifest":
        for split, row in track(rows, "writing the files"):
            _place(source, row, folder / split, link)
    base = os.path.relpath(os.path.realpath(source.root), os.path.realpath(out))
    write_manifest(
        (
            ManifestRow(
                os.path.join(base, source.paths[row])
                if link == "manifest"
                else os.path.join(split, _target(source, row)),
                label=source.classes[row],
                split=split,
            )
            for split, row in rows
        ),
        folder / "split.csv",
    )


def _target(source: UnsplitDataset, row: int) -> str:
    """Where an image goes below its split: its class, and its path inside the folder of its class."""
    name = source.classes[row]
    return os.path.join(name, source.paths[row].removeprefix(f"{name}/"))


def _place(source: UnsplitDataset, row: int, folder: Path, link: str) -> None:
    original, target = os.path.abspath(os.path.join(source.root, source.paths[row])), folder / _target(source, row)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            raise DataError(f"two files would be {target.name} of {source.classes[row]}: {shown(source.paths[row])}")
        if link != "symlink" and not os.path.isfile(original):  # a device could be copied without end
            raise DataError(f"cannot {link} {shown(original)}: it is missing or not a regular file")
        if link == "copy":
            shutil.copyfile(original, target)
        elif link == "hardlink":
            os.link(original, target)
        else:
            target.symlink_to(original)
    except OSError as error:
        raise disk_error(error, target) or DataError(f"cannot {link} {shown(original)}: {error.strerror}") from error
