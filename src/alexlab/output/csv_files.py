"""CSV files whose cells a spreadsheet does not run as formulas. Imports nothing heavy.

A text that begins with `=`, `+`, `-`, `@`, a tab or a line break, and is no number, is written with `'` before it, as OWASP
advises; one that begins so after some `'` gets one more, so that `restored` gives every text back as it was.
"""

import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import alexlab.output.escape  # noqa: F401 - registers the error handler "shown"

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four: full width, which Excel reads too


def neutralised(value: Any) -> Any:
    """Return a cell with `'` before a text that a spreadsheet would take for a formula; numbers stay numbers."""
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def restored(text: str) -> str:
    """Return the text of a cell that `neutralised` has written."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


class CellWriter:
    """Writer of CSV rows with neutralised cells.

    Args:
        file: opened with newline="".
    """

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file)

    def writerow(self, row: Iterable[Any]) -> None:
        self._writer.writerow(map(neutralised, row))


def csv_bytes(rows: Iterable[Iterable[Any]], *, errors: str = "shown") -> bytes:
    """Return rows, the header first, as a CSV file in UTF-8.

    Args:
        rows: cells; None is an empty one.
        errors: what becomes of file names that are not UTF-8: `shown` escapes their bytes, `surrogateescape` keeps them.
    """
    text = io.StringIO(newline="")
    writer = CellWriter(text)
    for row in rows:
        writer.writerow(row)
    return text.getvalue().encode("utf-8", errors)


def write_csv(path: str | os.PathLike[str], rows: Iterable[Iterable[Any]], *, errors: str = "shown") -> None:
    """Write rows to a CSV file, as `csv_bytes` returns them."""
    Path(path).write_bytes(csv_bytes(rows, errors=errors))
