"""Self-contained HTML pages from Jinja2 templates; they need no network."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from alexlab.output.escape import shown


class Link(NamedTuple):
    """A link to a file.

    Args:
        name: link text.
        href: URL, relative to the page.
    """

    name: str
    href: str


class Interval(NamedTuple):
    """A mean with its interval, drawn on a scale that the intervals of a column share.

    Args:
        low: lower end.
        mean: the mean.
        high: upper end.
        scale: values at the left and right end of the drawing.
    """

    low: float
    mean: float
    high: float
    scale: tuple[float, float]

    def at(self, value: float) -> float:
        """Return the position of a value in the drawing, in percent of its width without a margin of 2 %."""
        left, right = self.scale
        return round(2 + 96 * (value - left) / (right - left), 2) if right > left else 50.0

    def __str__(self) -> str:
        return f"{self.low:.4f} to {self.high:.4f}"


class SortableCell(NamedTuple):
    """A table cell of text that is sorted by its value.

    Args:
        value: the number.
        text: the number with its interval.
    """

    value: float
    text: str

    def __str__(self) -> str:
        return self.text


def render(template: str, **values: Any) -> str:
    """Return a page from a template in `templates/`.

    Every value is escaped for HTML, and its hidden characters are made visible, unless it is `Markup`. A value that the
    template uses and that is not given is an error.

    Args:
        template: file name, such as `evaluation.html`.
        values: variables of the template; pages need `title`. `date` is now.
    """
    return _ENVIRONMENT.get_template(template).render(date=time.strftime("%Y-%m-%d %H:%M"), **values)


def file_links(files: Sequence[Path], page_dir: Path) -> list[Link]:
    """Return relative links to files, which stay valid when the files and the page are moved together.

    Args:
        files: paths of the files.
        page_dir: folder of the page.
    """
    paths = [os.fsencode(os.path.relpath(file.absolute(), page_dir.absolute())) for file in files]
    return [Link(file.name, quote(path)) for file, path in zip(files, paths, strict=True)]


def format_value(value: Any, digits: int | None = None) -> str:
    """Return a table cell as text: numbers with fixed decimals, thousands separators, and `-` for None.

    Args:
        value: the cell.
        digits: decimals of a number; None: those that suit it alone, see `column_digits`.
    """
    if value is None:
        return "-"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.{_digits([value]) if digits is None else digits}f}"
    return str(value)


def column_digits(rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> list[int | None]:
    """Return for each column the decimals that its numbers share, and None for a column without numbers.

    Durations and rates, whose column head ends in `, s` or `/s`, have one decimal.
    """
    digits: list[int | None] = []
    for number, name in enumerate(columns):
        cells = [row[number] for row in rows]
        numbers = [cell for cell in cells if isinstance(cell, int | float) and not isinstance(cell, bool)]
        digits.append(None if not numbers else 1 if str(name).endswith((", s", "/s")) else _digits(numbers))
    return digits


def _digits(values: Sequence[float]) -> int:
    """Return 0 for integers, 4 for fractions and anything finer than tenths, such as scores, and 1 for tenths."""
    if all(isinstance(value, int) for value in values):
        return 0
    if any(abs(value - round(value, 1)) > 1e-9 for value in values) or all(0 <= value <= 1 for value in values):
        return 4
    return 1


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup) else shown(value)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_finalize,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {"value": format_value, "column_digits": column_digits}
_ENVIRONMENT.tests["estimate"] = lambda value: isinstance(value, SortableCell)
_ENVIRONMENT.tests["interval"] = lambda value: isinstance(value, Interval)
