"""Results of a benchmark as rows of a table, JSON, Markdown and a plot."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from alexlab.output.escape import escape_markdown, plot_label

COLUMNS = ("suite", "what", "measured (min, max)", "baseline", "baseline measured", "ratio", "limit")
LOWER_IS_BETTER = ("s", "ms", "MB")  # units


@dataclass(frozen=True)
class Row:
    """A measurement, and that of a baseline in the same rounds.

    Args:
        suite: name of the suite.
        what: description of the measurement.
        values: one per round.
        unit: unit of all values.
        baseline: name of the baseline; empty for a measurement without one.
        baseline_values: one per round.
        limit: resource that limits the measurement, and the share of it that is reached.
    """

    suite: str
    what: str
    values: Sequence[float]
    unit: str
    baseline: str = ""
    baseline_values: Sequence[float] = ()
    limit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def ratios(self) -> list[float]:
        """The factor by which each round is better than the baseline's."""
        pairs = list(zip(self.values, self.baseline_values, strict=False))
        return [other / value if self.unit in LOWER_IS_BETTER else value / other for value, other in pairs]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, with medians, for JSON."""
        content: dict[str, Any] = {**asdict(self), "median": self.median}
        if self.baseline_values:
            medians = {"baseline_median": self.baseline_values, "ratio": self.ratios}
            content |= {name: statistics.median(values) for name, values in medians.items()}
        return content


def table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows as a table for a terminal."""
    result = Table(title=title)
    for name in COLUMNS:
        is_number = name.startswith(("measured", "baseline measured", "times"))
        result.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        result.add_row(*cells(row), end_section=following is not None and following.suite != row.suite)
    return result


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text, one cell per column."""
    baseline_values = f"{format_spread(row.baseline_values)} {row.unit}" if row.baseline_values else ""
    ratios = format_spread(row.ratios, digits=2) if row.baseline_values else ""
    values = f"{format_spread(row.values)} {row.unit}"
    return (row.suite, row.what, values, row.baseline, baseline_values, ratios, row.limit)


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(map(escape_markdown, cells(row))) + " |" for row in rows)]) + "\n"


def format_spread(values: Sequence[float], *, digits: int | None = None) -> str:
    """Return the median and, of several values, the smallest and the largest.

    Args:
        values: measurements, at least one.
        digits: decimal places; None for three significant digits.
    """

    def text(value: float) -> str:
        if digits is not None:
            return f"{value:.{digits}f}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"

    median = text(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({text(min(values))}, {text(max(values))})"


def write(rows: Sequence[Row], about: dict[str, Any], out_dir: Path) -> None:
    """Write benchmark.json, benchmark.md and, if a row has a baseline, benchmark.png.

    Args:
        rows: rows of all suites so far.
        about: machine, versions and settings, for the JSON file.
        out_dir: an existing folder.
    """
    content = {**about, "rows": [row.as_dict() for row in rows]}
    (out_dir / "benchmark.json").write_text(json.dumps(content, indent=2) + "\n")
    (out_dir / "benchmark.md").write_text(markdown(rows))
    compared = [row for row in rows if row.baseline_values]
    if compared:
        _plot(compared, out_dir / "benchmark.png")


def _plot(rows: Sequence[Row], path: Path) -> None:
    """Draw a bar for each ratio, with its smallest and its largest value."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.8 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    medians = [statistics.median(row.ratios) for row in rows]
    errors = [
        [median - min(row.ratios) for row, median in zip(rows, medians, strict=True)],
        [max(row.ratios) - median for row, median in zip(rows, medians, strict=True)],
    ]
    suites = list(dict.fromkeys(row.suite for row in rows))
    colors = [f"C{suites.index(row.suite)}" for row in rows]
    axes.barh(range(len(rows)), medians, xerr=errors, color=colors, capsize=2, height=0.7)
    names = [plot_label(f"{row.suite}: {row.what}, compared with {row.baseline}") for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xlabel="ratio to the baseline, above 1 is better (median, min, max)", xscale="log")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
