"""CSV tables from spreadsheets and scripts, in any of the usual delimiters, encodings and column names."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from alexlab.errors import DataError
from alexlab.output.csv_files import unescape_formula
from alexlab.output.escape import shown

DELIMITERS = ",;\t"
# Common names of each column, in lower case; the first is ours.
COLUMN_NAMES = {
    "path": ("path", "file", "filename", "image"),
    "class": ("class", "label", "category", "target"),
    "split": ("split", "subset"),
}


def read_table(path: str | Path, *, what: str, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield `FILE, line N` and the cells of each row by lower-case column name, see COLUMN_NAMES.

    Cells of the column `path` may contain undecodable bytes, as file names may.

    Args:
        path: CSV file with a header, in UTF-8 or UTF-16 with or without a byte order mark, and delimited by comma, semicolon or
            tab.
        what: description of the file for messages, such as `a manifest`.
        needed: required columns.

    Raises:
        DataError: if the file is not such a table; with the line.
    """
    try:
        with open(path, "rb") as content:
            is_utf16 = content.read(2) in (b"\xff\xfe", b"\xfe\xff")
        encoding, errors = ("utf-16", "strict") if is_utf16 else ("utf-8-sig", "surrogateescape")
        with open(path, newline="", encoding=encoding, errors=errors) as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(DELIMITERS, key=first.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            columns = _columns(next(reader, []), str(path), what, needed)
            for cells in reader:
                if any(cells):
                    where = f"{shown(path)}, line {reader.line_num}"
                    yield where, _row(cells, columns, where)
    except OSError as error:
        raise DataError(f"cannot read {what} {shown(path)}: {error.strerror}") from error
    except (csv.Error, UnicodeError) as error:
        raise DataError(f"{what} must be a CSV file; {shown(path)} is not: {error}") from error


def _columns(header: Sequence[str], path: str, what: str, needed: Sequence[str]) -> list[str]:
    """Return the names of the columns, translated to those of COLUMN_NAMES."""
    given = [name.strip().lower() for name in header]
    columns = list(given)
    for name, aliases in COLUMN_NAMES.items():
        used = next((alias for alias in aliases if alias in given), None)
        columns = [name if column == used else column for column in columns]
    if "\0" in "".join(given):
        raise DataError(f"{what} must be a text file; {shown(path)} contains zero bytes: save it as UTF-8")
    missing = [name for name in needed if name not in columns]
    if missing:
        required = " and a column ".join(" or ".join(COLUMN_NAMES.get(name, (name,))) for name in needed)
        raise DataError(
            f"{what} must be a CSV file with a column {required}; {shown(path)} has {', '.join(map(repr, given)) or 'none'}"
        )
    repeated = {name for name in columns if name in COLUMN_NAMES and columns.count(name) > 1}
    if repeated:
        raise DataError(f"{what} must have each column once; {shown(path)} repeats {', '.join(sorted(repeated))}")
    return columns


def _row(cells: Sequence[str], columns: Sequence[str], where: str) -> dict[str, str]:
    if any(cells[len(columns) :]):
        raise DataError(
            f"{where}: expected {len(columns)} cells, got {len(cells)}; quote a path that contains the delimiter"
        )
    row = dict(zip(columns, [*cells, *[""] * len(columns)], strict=False))
    if "\0" in "".join(cells):
        raise DataError(f"{where}: a cell contains a zero byte")
    for name, cell in row.items():
        row[name] = unescape_formula(cell if name == "path" else cell.strip())
        if name != "path" and any("\ud800" <= letter <= "\udfff" for letter in cell):  # bytes that could not be decoded
            raise DataError(
                f"{where}: {name} must be UTF-8; got {shown(cell)}. Convert a table in another encoding with, for example, "
                "iconv -f latin1 -t utf-8"
            )
    return row
