"""The one list of images that all commands write and read: a CSV file with a row for each image. Imports no torch."""

import csv
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from alexlab.cells import restored, write_csv
from alexlab.errors import DataError


@dataclass(frozen=True)
class Row:
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


COLUMNS = tuple("class" if column.name == "label" else column.name for column in fields(Row))


def write_manifest(rows: Iterable[Row], path: Path) -> None:
    """Writes the rows; names that are no UTF-8 are kept as their bytes."""
    write_csv(path, itertools.chain([COLUMNS], (asdict(row).values() for row in rows)), errors="surrogateescape")


def read_manifest(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of a manifest; only the column `path` must be there.

    Raises:
        DataError: when it is no such file.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or ()):
                raise DataError(
                    f"a manifest must have the columns {', '.join(COLUMNS)}, at least path; {path} has "
                    f"{', '.join(reader.fieldnames or ['none'])}"
                )
            for number, row in enumerate(reader, start=2):
                yield _row(row, f"{path}, line {number}")
    except OSError as error:
        raise DataError(f"cannot read the manifest {path}: {error.strerror}") from error


def _row(row: dict[str, str | None], where: str) -> Row:
    def number(name: str) -> int | None:
        text = row.get(name) or ""
        if text and not text.isdigit():
            raise DataError(f"{where}: {name} must be a whole number; got {text!r}")
        return int(text) if text else None

    def text(name: str) -> str:
        return restored(row.get(name) or "")

    if not text("path"):
        raise DataError(f"{where}: there is no path")
    return Row(
        text("path"),
        number("size"),
        text("sha256").lower(),
        text("class"),
        text("split"),
        number("width"),
        number("height"),
        text("mode"),
    )
