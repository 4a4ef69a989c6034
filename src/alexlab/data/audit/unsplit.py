"""Labelled images that are not yet split: class folders, one folder of files with the class in their names, or a CSV table."""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alexlab.data.class_names import check_class_names, folder_name_problem
from alexlab.data.file_types import IMAGE_EXTENSIONS, class_folders, file_type
from alexlab.data.hash_split import compile_pattern, find_groups
from alexlab.data.hidden_names import is_hidden
from alexlab.data.layout import find_layout
from alexlab.data.manifest import locator
from alexlab.data.scan import check_root, scan_folder
from alexlab.data.table import read_table
from alexlab.errors import ConfigError, DataError
from alexlab.output.escape import shown


@dataclass(frozen=True)
class UnsplitDataset:
    """Labelled images that are not yet split.

    Args:
        root: folder that `paths` are relative to.
        paths: paths of the images.
        classes: class name of each image.
        groups: group name of each image (images of a group go to the same split); None if there are no groups.
        notes: remarks for the user, such as on files that are left out.
    """

    root: str
    paths: Sequence[str]
    classes: Sequence[str]
    groups: Sequence[str] | None = None
    notes: Sequence[str] = ()


def find_unsplit(
    root: str,
    *,
    labels: str | None,
    pattern: str,
    group: str | None,
    folders: Mapping[str, str | None] | None = None,
) -> UnsplitDataset:
    """Find the images of a dataset and their classes.

    Args:
        root: folder of class folders, or of images whose names contain the class.
        labels: CSV file with the columns path and class; paths are relative to root, or absolute and inside of it.
        pattern: regular expression with a group `class`, matched at the start of each file name of a flat folder.
        group: regular expression searched for in each path; its first group, or the whole match, is the group name.
        folders: folder of each split, as for `find_splits`; `train=.` takes all folders as classes.

    Raises:
        ConfigError: if `pattern` or `group` is not a valid regular expression.
        DataError: if there are no images, a class folder is empty, a file name does not match, or a class name is not usable as
            a folder name.
    """
    check_root(root)
    notes: list[str] = []
    if labels is not None:
        paths, classes = _from_table(labels, root)
    elif class_folders(root):
        layout = find_layout(root, folders)
        if layout.folder("train") != "" and layout.folders:
            raise DataError(f"{root} is already split: it has {', '.join(class_folders(root))}")
        notes += layout.notes
        whole = scan_folder(root, notes=notes)
        paths, classes = list(whole.paths), [whole.classes[label] for label in whole.labels.tolist()]
    else:
        paths, classes = _from_file_names(root, pattern)
    if not paths:
        raise DataError(f"{root} holds no images: looked for {', '.join(IMAGE_EXTENSIONS)}")
    check_class_names(sorted(set(classes)), labels or root)
    return UnsplitDataset(root, paths, classes, None if group is None else find_groups(paths, group, "group"), notes)


def _from_file_names(root: str, pattern: str) -> tuple[list[str], list[str]]:
    expression = compile_pattern(pattern, "pattern")
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
            raise DataError(f"pattern={pattern!r} must find the class in every file name; it does not in {shown(path)}")
        _check_class(match["class"], f"pattern={pattern!r}, file {shown(path)}")
        classes.append(match["class"])
    return paths, classes


def _from_table(labels: str, root: str) -> tuple[list[str], list[str]]:
    """Return paths, relative to root and without `.` or `..`, and classes of a table, which is untrusted.

    Raises:
        DataError: if a file is listed twice, missing or outside of root, or a class name is not usable as a folder name. The
            message has the line number.
    """
    located, real_root = locator(root), os.path.realpath(root)
    lines: dict[str, str] = {}
    classes = []
    for where, cells in read_table(labels, what="labels", needed=("path", "class")):
        path = os.path.relpath(located(cells["path"]), real_root)
        if not cells["path"] or path.split(os.sep)[0] == os.pardir:
            raise DataError(f"{where}: a path must lead to a file inside {shown(root)}; got {shown(cells['path'])!r}")
        if path in lines:
            raise DataError(f"{where}: each file must be listed once; {shown(path)} is also in {lines[path]}")
        if not os.path.isfile(os.path.join(real_root, path)):
            raise DataError(f"{where}: no such file in {shown(root)}: {shown(path)}")
        if any(map(is_hidden, path.split(os.sep))):
            raise DataError(f"{where}: hidden files cannot be part of a dataset; got {shown(path)}")
        _check_class(cells["class"], where)
        lines[path] = where.rpartition(", ")[2]
        classes.append(cells["class"])
    return list(lines), classes


def _check_class(name: str, where: str) -> None:
    reason = folder_name_problem(name)
    if reason is not None:
        raise DataError(f"{where}: a class must be a plain folder name; got {name!r}: {reason}")
