"""What became of the jobs of a sweep. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """One job of a sweep: its number, its overrides, and its score or the cause of its failure."""

    number: int
    overrides: Sequence[str]
    score: float | None = None
    cause: str | None = None


outcomes: list[Outcome] = []


def print_outcomes(folder: Path) -> None:
    """Prints a table of all jobs, the failed ones with their causes."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(outcomes)} jobs, {sum(outcome.cause is not None for outcome in outcomes)} failed")
    table.add_column("job", justify="right")
    table.add_column("overrides")
    table.add_column("best val/top1", justify="right")
    table.add_column("cause of failure")
    for outcome in outcomes:
        score = "-" if outcome.score is None else f"{outcome.score:.4f}"
        table.add_row(str(outcome.number), " ".join(outcome.overrides), score, outcome.cause or "", end_section=True)
    Console().print(table)
    print(f"sweep folder: {folder}")
    print(f"tensorboard --logdir {folder}")


def write_report(folder: Path) -> None:
    """Writes the report of a sweep into its folder; a sweep without a single run has none."""
    from alexlab.errors import ConfigError
    from alexlab.report_page import write_report as write

    try:
        print(f"report: {write([str(folder)], folder)}")
    except ConfigError:
        return
