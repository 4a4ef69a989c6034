"""Writes a data set as train, val and test: from class folders, from names of files, or from a table. Imports no torch."""

import csv
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from alexlab.data.division import divide
from alexlab.data.listing import IMAGE_EXTENSIONS, class_folders, hidden, list_images, shown
from alexlab.data.manifest import Row, write_manifest
from alexlab.data.tree import written_whole
from alexlab.disk import disk_error
from alexlab.errors import ConfigError, DataError

HOW = ("copy", "hardlink", "symlink", "manifest")
PATH_COLUMNS, LABEL_COLUMNS = ("path", "file", "filename", "image"), ("class", "label", "category", "target")


@dataclass(frozen=True)
class Source:
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


def find_source(root: str, *, labels: str | None, pattern: str, group: str | None) -> Source:
    """Finds the images and their classes.

    Args:
        root: a folder of class folders, or of images whose names tell the class.
        labels: a CSV file with the columns path and class; its paths are relative to root.
        pattern: a regular expression with a group `class`, matched at the start of the name of each file of a flat folder.
        group: a regular expression, searched for in each path; what it finds, or its first group, must stay together.

    Raises:
        DataError: when there are no images, or a name does not match.
    """
    if not os.path.isdir(root):
        raise DataError(f"data.root must be a folder of images; there is no folder {root!r}")
    if labels is not None:
        paths, classes = _table(labels)
    elif class_folders(root):
        if any(name in ("train", "val", "valid", "validation", "test") for name in class_folders(root)):
            raise DataError(f"{root} is divided already: it has {', '.join(class_folders(root))}")
        listing = list_images(root)
        paths, classes = list(listing.paths), [listing.classes[label] for label in listing.labels.tolist()]
    else:
        paths, classes = _flat(root, pattern)
    if not paths:
        raise DataError(f"{root} holds no images: looked for {', '.join(IMAGE_EXTENSIONS)}")
    return Source(root, paths, classes, None if group is None else [_group(path, group) for path in paths])


def _flat(root: str, pattern: str) -> tuple[list[str], list[str]]:
    expression = _expression(pattern, "pattern")
    if "class" not in expression.groupindex:
        raise ConfigError(f"pattern must have a group for the class, (?P<class>...); got {pattern!r}")
    paths = sorted(name for name in os.listdir(root) if name.lower().endswith(IMAGE_EXTENSIONS) and not hidden(name))
    classes = []
    for path in paths:
        match = expression.match(path)
        if match is None:
            raise DataError(
                f"the name of every file must tell its class by pattern={pattern!r}; {shown(path)} does not"
            )
        classes.append(match["class"])
    return paths, classes


def _table(labels: str) -> tuple[list[str], list[str]]:
    try:
        with open(labels, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = [name.lower() for name in reader.fieldnames or []]
            columns = [
                next((name for name in names if name in wanted), None) for wanted in (PATH_COLUMNS, LABEL_COLUMNS)
            ]
            if None in columns:
                raise DataError(
                    f"labels must be a CSV file with a column {' or '.join(PATH_COLUMNS)} and a column "
                    f"{' or '.join(LABEL_COLUMNS)}; {labels} has {', '.join(names) or 'none'}"
                )
            rows = [{name.lower(): value for name, value in row.items() if name} for row in reader]
    except OSError as error:
        raise DataError(f"cannot read labels={labels}: {error.strerror}") from error
    return [row[str(columns[0])] for row in rows], [row[str(columns[1])] for row in rows]


def _expression(text: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"{key} must be a regular expression; got {text!r}: {error}") from error


def _group(path: str, pattern: str) -> str:
    match = _expression(pattern, "group").search(path)
    if match is None:
        raise DataError(f"every path must tell its group by group={pattern!r}; {shown(path)} does not")
    return match[1] if match.re.groups else match[0]


def plan(source: Source, fractions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
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
    return divide(source.paths, labels, classes, wanted, seed, source.groups)


def write_division(source: Source, parts: Mapping[str, np.ndarray], out: Path, how: str) -> None:
    """Writes `out/<split>/<class>/<file>`, or only `out/split.csv`, whole or not at all.

    Args:
        source: the images.
        parts: the rows of each split.
        out: a folder that is not there, or empty.
        how: `copy`, `hardlink` or `symlink` the files, or only list them: `manifest`.

    Raises:
        ConfigError: when `how` is none of these, or the folder is not empty.
        DataError: when a file cannot be read or linked, or two files would have one name.
    """
    if how not in HOW:
        raise ConfigError(f"how must be one of {', '.join(HOW)}; got {how!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out must be a new or an empty folder; {out} is not")
    rows = [(split, int(row)) for split, chosen in parts.items() for row in chosen]
    if out.is_dir():
        out.rmdir()
    with written_whole(out) as folder:
        if how != "manifest":
            silent = not sys.stdout.isatty()
            for split, row in track(rows, "writing the files", disable=silent, transient=True):
                _place(source, row, folder / split, how)
        base = os.path.relpath(source.root, out)
        write_manifest(
            (
                Row(
                    os.path.join(base, source.paths[row])
                    if how == "manifest"
                    else os.path.join(split, _target(source, row)),
                    label=source.classes[row],
                    split=split,
                )
                for split, row in rows
            ),
            folder / "split.csv",
        )


def _target(source: Source, row: int) -> str:
    """Where an image goes below its split: its class, and its path inside the folder of its class."""
    path, name = source.paths[row], source.classes[row]
    inner = path.removeprefix(f"{name}/").replace("..", "").lstrip("/")
    return os.path.join(name, inner)


def _place(source: Source, row: int, folder: Path, how: str) -> None:
    original, target = os.path.abspath(os.path.join(source.root, source.paths[row])), folder / _target(source, row)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if os.path.lexists(target):
            raise DataError(f"two files would be {target.name} of {source.classes[row]}: {shown(source.paths[row])}")
        if how == "copy":
            shutil.copyfile(original, target)
        elif how == "hardlink":
            os.link(original, target)
        else:
            target.symlink_to(original)
    except OSError as error:
        raise disk_error(error, target) or DataError(f"cannot {how} {shown(original)}: {error.strerror}") from error
