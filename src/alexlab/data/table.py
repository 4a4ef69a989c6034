"""CSV tables from spreadsheets and scripts: any of the usual delimiters, encodings and spellings of the columns.

Imports no torch.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from alexlab.errors import DataError
from alexlab.output.csv_files import restored
from alexlab.output.escape import shown

DELIMITERS = ",;\t"
# Columns under the names that other people give them.
NAMES = {
    "path": ("path", "file", "filename", "image"),
    "class": ("class", "label", "category", "target"),
    "split": ("split", "subset"),
}


def read_table(path: str | Path, *, what: str, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield `FILE, line N` and the cells of each row by the name of their column in lower case, see NAMES.

    Cells of the column path may hold undecodable bytes, as file names may.

    Args:
        path: a CSV file with a header, as UTF-8 or UTF-16, with or without a byte order mark; delimited by comma,
            semicolon or tab.
        what: name of the file for messages, such as `a manifest`.
        needed: columns that must be there.

    Raises:
        DataError: if it is no such file; with the line.
    """
    try:
        with open(path, "rb") as content:
            wide = content.read(2) in (b"\xff\xfe", b"\xfe\xff")
        encoding, errors = ("utf-16", "strict") if wide else ("utf-8-sig", "surrogateescape")
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
    """Return the names of the columns, known ones as in NAMES."""
    typed = [name.strip().lower() for name in header]
    columns = list(typed)
    for name, names in NAMES.items():
        known = next((one for one in names if one in typed), None)
        columns = [name if one == known else one for one in columns]
    if "\0" in "".join(typed):
        raise DataError(f"{what} must be a text file; {shown(path)} holds zero bytes: save it as UTF-8")
    missing = [name for name in needed if name not in columns]
    if missing:
        wanted = " and a column ".join(" or ".join(NAMES[name]) for name in needed)
        raise DataError(
            f"{what} must be a CSV file with a column {wanted}; {shown(path)} has {', '.join(map(repr, typed)) or 'none'}"
        )
    twice = {name for name in columns if name in NAMES and columns.count(name) > 1}
    if twice:
        raise DataError(f"{what} must have each column once; {shown(path)} has {', '.join(sorted(twice))} twice")
    return columns


def _row(cells: Sequence[str], columns: Sequence[str], where: str) -> dict[str, str]:
    if any(cells[len(columns) :]):
        raise DataError(
            f"{where}: there are {len(cells)} cells in {len(columns)} columns; a path with the delimiter in it needs quotes"
        )
    row = dict(zip(columns, [*cells, *[""] * len(columns)], strict=False))
    if "\0" in "".join(cells):
        raise DataError(f"{where}: there is a zero byte")
    for name, cell in row.items():
        row[name] = restored(cell if name == "path" else cell.strip())
        if name != "path" and any("\ud800" <= letter <= "\udfff" for letter in cell):  # bytes that could not be decoded
            raise DataError(
                f"{where}: {name} must be UTF-8; got {shown(cell)}. A table in another encoding is converted with, "
                "for example, iconv -f latin1 -t utf-8"
            )
    return row
