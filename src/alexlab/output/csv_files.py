"""CSV files without cells that a spreadsheet evaluates as formulas.

A text that begins with `=`, `+`, `-`, `@`, a tab or a line break and is not a number is written with a leading `'`, as OWASP
advises. If such a text already begins with `'`, it gets one more, so that `unescape_formula` restores every text.
"""

import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import alexlab.output.escape  # noqa: F401 - registers the error handler "shown"

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four: full width, which Excel accepts too


def escape_formula(value: Any) -> Any:
    """Return a cell, with a leading `'` if it is a text that a spreadsheet would evaluate; numbers stay numbers."""
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def unescape_formula(text: str) -> str:
    """Return the text that `escape_formula` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


class CellWriter:
    """Writer of CSV rows with escaped formulas.

    Args:
        file: opened with newline="".
    """

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file)

    def writerow(self, row: Iterable[Any]) -> None:
        self._writer.writerow(map(escape_formula, row))


def csv_bytes(rows: Iterable[Iterable[Any]], *, errors: str = "shown") -> bytes:
    """Return rows as a CSV file in UTF-8.

    Args:
        rows: cells of each row, the header first; None is an empty cell.
        errors: treatment of file names that are not UTF-8: `shown` escapes their bytes, `surrogateescape` keeps them.
    """
    text = io.StringIO(newline="")
    writer = CellWriter(text)
    for row in rows:
        writer.writerow(row)
    return text.getvalue().encode("utf-8", errors)


def write_csv(path: str | os.PathLike[str], rows: Iterable[Iterable[Any]], *, errors: str = "shown") -> None:
    """Write rows to a CSV file; the arguments are those of `csv_bytes`."""
    Path(path).write_bytes(csv_bytes(rows, errors=errors))
