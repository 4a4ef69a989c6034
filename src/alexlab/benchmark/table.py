"""What a benchmark has found: rows, as a table, JSON and a picture. Imports no torch."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from alexlab.output.escape import markdown as markdown_text
from alexlab.output.escape import plot_label

COLUMNS = ("suite", "what", "measured (least, most)", "beside", "its measure", "times better", "limit")
LOWER = ("s", "ms", "MB")  # units of which less is better


@dataclass(frozen=True)
class Row:
    """One measurement beside another one.

    Args:
        suite: it belongs to.
        what: was measured.
        values: one for each round.
        unit: of the values.
        beside: what it is compared with; nothing for a figure that stands alone.
        others: its values in the same rounds.
        limit: which resource limits it, and how far it is from that.
    """

    suite: str
    what: str
    values: Sequence[float]
    unit: str
    beside: str = ""
    others: Sequence[float] = ()
    limit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def ratios(self) -> list[float]:
        """How many times better, round by round."""
        pairs = list(zip(self.values, self.others, strict=False))
        return [other / value if self.unit in LOWER else value / other for value, other in pairs]

    def plain(self) -> dict[str, Any]:
        """Everything, with medians, for JSON."""
        found: dict[str, Any] = {**asdict(self), "median": self.median}
        if self.others:
            found |= {"other_median": statistics.median(self.others), "ratio": statistics.median(self.ratios)}
        return found


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows for a terminal: medians, with the smallest and the largest value."""
    found = Table(title=title)
    for name in COLUMNS:
        found.add_column(name, justify="right" if "m" in name.split()[0] else "left", overflow="fold")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        found.add_row(*cells(row), end_section=following is not None and following.suite != row.suite)
    return found


def cells(row: Row) -> tuple[str, ...]:
    """A row as words, one for each of `COLUMNS`."""
    others = f"{spread(row.others)} {row.unit}" if row.others else ""
    ratios = spread(row.ratios, 2) if row.others else ""
    return (row.suite, row.what, f"{spread(row.values)} {row.unit}", row.beside, others, ratios, row.limit)


def markdown(rows: Sequence[Row]) -> str:
    """The same as a table of a README."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(map(markdown_text, cells(row))) + " |" for row in rows)]) + "\n"


def spread(values: Sequence[float], digits: int | None = None) -> str:
    """Median, and the smallest and the largest of several."""

    def shown(value: float) -> str:
        if digits is not None:
            return f"{value:.{digits}f}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"

    median = shown(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({shown(min(values))}, {shown(max(values))})"


def write(rows: Sequence[Row], about: dict[str, Any], out: Path) -> None:
    """Writes benchmark.json, benchmark.md and benchmark.png.

    Args:
        rows: of all suites.
        about: the machine, versions and settings.
        out: the folder.
    """
    content = {**about, "rows": [row.plain() for row in rows]}
    (out / "benchmark.json").write_text(json.dumps(content, indent=2) + "\n")
    (out / "benchmark.md").write_text(markdown(rows))
    compared = [row for row in rows if row.others]
    if compared:
        _draw(compared, out / "benchmark.png")


def _draw(rows: Sequence[Row], path: Path) -> None:
    """A bar for each ratio, with its smallest and its largest value."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.8 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    medians = [statistics.median(row.ratios) for row in rows]
    reach = [
        [middle - min(row.ratios) for row, middle in zip(rows, medians, strict=True)],
        [max(row.ratios) - middle for row, middle in zip(rows, medians, strict=True)],
    ]
    suites = list(dict.fromkeys(row.suite for row in rows))
    colors = [f"C{suites.index(row.suite)}" for row in rows]
    axes.barh(range(len(rows)), medians, xerr=reach, color=colors, capsize=2, height=0.7)
    names = [plot_label(f"{row.suite}: {row.what} beside {row.beside}") for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xlabel="times better (median, smallest, largest)", xscale="log")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
