"""The one list of images that all commands write and read: a CSV file with a row for each image. Imports no torch."""

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
    """One image; what nobody has looked up is empty.

    Args:
        path: relative to the data set's folder, or to the manifest.
        size: in bytes.
        sha256: of the content, in hexadecimal digits.
        label: name of its class; the column is called `class`.
        split: train, val, test or nothing.
        width, height: upright, in pixels.
        mode: of its pixels, as Pillow names them.
    """

    path: str
    size: int | None = None
    sha256: str = ""
    label: str = ""
    split: str = ""
    width: int | None = None
    height: int | None = None
    mode: str = ""


COLUMNS = tuple("class" if column.name == "label" else column.name for column in fields(ManifestRow))


def write_manifest(rows: Iterable[ManifestRow], path: Path) -> None:
    """Writes the rows; names that are no UTF-8 are kept as their bytes."""
    write_csv(path, itertools.chain([COLUMNS], (asdict(row).values() for row in rows)), errors="surrogateescape")


def read_manifest(path: str | Path, root: str) -> dict[str, ManifestRow]:
    """Return the rows of a manifest by the location of their file, see `locator`; only the column `path` must be there.

    Args:
        path: of the manifest.
        root: the folder that its paths are relative to.

    Raises:
        DataError: if it is no manifest, or lists a file twice.
    """
    located, rows, lines, twice = locator(root), dict[str, ManifestRow](), dict[str, str](), []
    for where, cells in read_table(path, what="a manifest", needed=("path",)):
        row = _row(cells, where)
        location = located(row.path)
        line = f"line {where.rpartition(' ')[2]} ({', '.join(filter(None, [row.path, row.split, row.label]))})"
        if location in rows:
            twice.append(f"{shown(line)} and {shown(lines[location])}")
        rows.setdefault(location, row)
        lines.setdefault(location, line)
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise DataError(f"a manifest must list each file once; {shown(path)} repeats {'; '.join(twice[:3])}{more}")
    return rows


def locator(root: str) -> Callable[[str], str]:
    """Return a function that tells where a path leads: equal for `a.jpg`, `./a.jpg`, `x/../a.jpg` and its absolute path.

    Folders are asked for links, once each; files are not.

    Args:
        root: the folder that relative paths are relative to.
    """
    folder_of = lru_cache(maxsize=None)(os.path.realpath)

    def located(path: str) -> str:
        folder, name = os.path.split(os.path.join(root, path))
        return os.path.normpath(os.path.join(folder_of(folder), name))

    return located


def _row(row: dict[str, str], where: str) -> ManifestRow:
    def number(name: str) -> int | None:
        text = row.get(name, "")
        if text and not text.isdigit():
            raise DataError(f"{where}: {name} must be a whole number; got {text!r}")
        return int(text) if text else None

    def text(name: str) -> str:
        return row.get(name, "")

    if not text("path"):
        raise DataError(f"{where}: there is no path")
    return ManifestRow(
        text("path"),
        number("size"),
        text("sha256").lower(),
        text("class"),
        split_from_name(text("split")) or text("split"),
        number("width"),
        number("height"),
        text("mode"),
    )
