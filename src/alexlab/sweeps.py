"""What became of the jobs of a sweep. Imports no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexlab.runs import CARD, EARLIER


@dataclass(frozen=True)
class Outcome:
    """One job of a sweep: its number, its overrides, and its score or the cause of its failure."""

    number: int
    overrides: Sequence[str]
    score: float | None = None
    cause: str | None = None


outcomes: list[Outcome] = []
checks: list[Callable[[Any], None]] = []  # of the composed config of a job, before the first job starts
locks: list[Any] = []  # on the folder of the sweep, for as long as this process lives


@dataclass(frozen=True)
class Earlier:
    """What an earlier attempt at a sweep has left of a job: its score, the cause of its failure, or something to go on with.

    Args:
        score: of a finished job.
        cause: of one that failed, or that cannot be run now.
        resumed: whether it was interrupted and goes on.
    """

    score: float | None = None
    cause: str | None = None
    resumed: bool = False


def earlier(folder: Path, *, repeat_failed: bool = False) -> Earlier:
    """What there is of a job in its folder; to repeat a failed one, what it left is moved to `.earlier/<n>/` inside."""
    if not (folder / CARD).is_file():
        return Earlier()
    from alexlab.cards import FAILED, FINISHED, INTERRUPTED, Card, holder

    card = Card(folder).read()
    if card["status"] == FINISHED:
        return Earlier(score=float((card.get("scores") or {}).get("best/top1", "nan")))
    if card["status"] == INTERRUPTED:
        return Earlier(resumed=True)
    if card["status"] != FAILED:
        return Earlier(cause=f"process {holder(folder)} is writing its folder")
    if not repeat_failed:
        return Earlier(cause=f"{card['reason']} (before; hydra.launcher.repeat_failed=true runs it again)")
    kept = folder / EARLIER
    place = kept / str(1 + len(list(kept.glob("*"))))
    place.mkdir(parents=True)
    for path in list(folder.iterdir()):
        if path != kept:
            path.rename(place / path.name)
    return Earlier()


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
