"""Manifest: a CSV file with one row for each image, which all commands read and write."""

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

from alexlab.data.layout import split_from_name
from alexlab.data.table import read_table
from alexlab.errors import DataError
from alexlab.output.csv_files import write_csv
from alexlab.output.escape import shown


@dataclass(frozen=True)
class ManifestRow:
    """One image; unknown values are empty.

    Args:
        path: path relative to the dataset's folder, or to the manifest.
        size: size of the file in bytes.
        sha256: hash of the content, in hexadecimal digits.
        label: name of the class; its column is called `class`.
        split: train, val, test or "".
        width, height: size in pixels after the EXIF orientation.
        mode: Pillow's name of the pixel format.
        root: folder to which `path` is relative; "" for the manifest's own.
    """

    path: str
    size: int | None = None
    sha256: str = ""
    label: str = ""
    split: str = ""
    width: int | None = None
    height: int | None = None
    mode: str = ""
    root: str = ""


COLUMNS = tuple("class" if column.name == "label" else column.name for column in fields(ManifestRow))


def write_manifest(rows: Iterable[ManifestRow], path: Path, *, with_root: bool = False) -> None:
    """Write a manifest; names that are not UTF-8 keep their bytes.

    Args:
        rows: rows of the manifest.
        path: path of the manifest.
        with_root: write the last column, `root`.
    """
    last = len(COLUMNS) - (not with_root)
    cells = ([*asdict(row).values()][:last] for row in rows)
    write_csv(path, itertools.chain([COLUMNS[:last]], cells), errors="surrogateescape")


def read_manifest(path: str | Path, root: str) -> dict[str, ManifestRow]:
    """Return the rows of a manifest by the location of their file, see `locator`; only the column `path` is required.

    Args:
        path: path of the manifest.
        root: folder to which its paths are relative.

    Raises:
        DataError: if the file is not a manifest, or lists a file twice.
    """
    located, rows, lines, repeats = locator(root), dict[str, ManifestRow](), dict[str, str](), []
    for where, cells in read_table(path, what="a manifest", needed=("path",)):
        row = _parse_row(cells, where)
        location = located(os.path.join(row.root, row.path))
        line = f"line {where.rpartition(' ')[2]} ({', '.join(filter(None, [row.path, row.split, row.label]))})"
        if location in rows:
            repeats.append(f"{shown(line)} and {shown(lines[location])}")
        rows.setdefault(location, row)
        lines.setdefault(location, line)
    if repeats:
        more = f" and {len(repeats) - 3} more" if len(repeats) > 3 else ""
        raise DataError(f"a manifest must list each file once; {shown(path)} repeats {'; '.join(repeats[:3])}{more}")
    return rows


def locator(root: str) -> Callable[[str], str]:
    """Return a function from a path to its location, which is equal for `a.jpg`, `./a.jpg`, `x/../a.jpg` and `root/a.jpg`.

    Links to folders are resolved, once per folder; links to files are not.

    Args:
        root: folder to which relative paths are relative.
    """
    folder_of = lru_cache(maxsize=None)(os.path.realpath)

    def located(path: str) -> str:
        folder, name = os.path.split(os.path.join(root, path))
        return os.path.normpath(os.path.join(folder_of(folder), name))

    return located


def _parse_row(cells: dict[str, str], where: str) -> ManifestRow:
    def number(name: str) -> int | None:
        text = cells.get(name, "")
        if text and not text.isdigit():
            raise DataError(f"{where}: {name} must be an integer; got {text!r}")
        return int(text) if text else None

    def text(name: str) -> str:
        return cells.get(name, "")

    if not text("path"):
        raise DataError(f"{where}: the path must not be empty")
    return ManifestRow(
        text("path"),
        number("size"),
        text("sha256").lower(),
        text("class"),
        split_from_name(text("split")) or text("split"),
        number("width"),
        number("height"),
        text("mode"),
        text("root"),
    )
