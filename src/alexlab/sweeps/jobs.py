"""The jobs of a sweep: what they are, what an earlier attempt has left of them, how they are shown. Imports no torch."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexlab.distributed.signals import Interrupted
from alexlab.errors import ConfigError
from alexlab.output.escape import print_line
from alexlab.runs.layout import EARLIER, RUN_JSON
from alexlab.runs.lock import lock_holder

if TYPE_CHECKING:
    from rich.table import Table

WAITING, RUNNING, FINISHED, PRUNED, FAILED = "waiting", "running", "finished", "pruned", "failed"
log = logging.getLogger(__name__)

MULTIRUN = "multirun.yaml"  # which Hydra writes into the folder of a sweep; nothing reads it

MAX_ROWS = 30  # of a table while the sweep runs


@dataclass
class Job:
    """One job of a sweep.

    Args:
        number: its place in the sweep.
        overrides: what it was given; not where it runs.
        folder: its run folder.
        config: its composed config, with Hydra's own node.
        state: waiting, running, finished, pruned or failed.
        score: the best val/top1 of a finished one.
        cause: why it failed or was pruned.
        place: where it runs: its GPUs or cores.
        standalone: it is no job of a sweep, but a run for a cluster.
    """

    number: int
    overrides: Sequence[str]
    folder: Path
    config: Any
    state: str = WAITING
    score: float | None = None
    cause: str | None = None
    place: str = ""
    standalone: bool = False

    def end(self, state: str, *, score: float | None = None, cause: str | None = None) -> None:
        """Says what became of it."""
        self.state, self.score, self.cause, self.place = state, score, cause, ""

    def interrupted(self, error: Interrupted) -> None:
        """Says that a signal to its process alone has ended it."""
        self.end(FAILED, cause=f"{error}; {self.resume_hint()}")

    def resume_hint(self) -> str:
        """How a person goes on with it, in words."""
        return f"resume={self.folder} goes on" if self.standalone else "-m resume= goes on with it"


jobs: list[Job] = []
checks: list[Callable[[Any, bool], None]] = []  # of the composed config of a job and whether it is for another machine
live_tables: list[Any] = []  # on the terminal now
locks: list[Any] = []  # on the folder of the sweep, for as long as this process lives


@dataclass(frozen=True)
class PreviousAttempt:
    """What an earlier attempt at a sweep has left of a job.

    Args:
        state: of a job that is not to be run: finished, pruned or failed; else None.
        score, cause: as of a Job.
        resumed: whether it was interrupted and goes on.
        held: whether a process is writing its folder.
    """

    state: str | None = None
    score: float | None = None
    cause: str | None = None
    resumed: bool = False
    held: bool = False


def previous_attempt(folder: Path, *, retry_failed: bool = False) -> PreviousAttempt:
    """What there is of a job in its folder; to repeat a failed one, what it left is moved to `.earlier/<n>/` inside."""
    if not (folder / RUN_JSON).is_file():
        return PreviousAttempt()
    from alexlab.runs import record

    try:
        card = record.RunRecord(folder).read()
    except record.CorruptError as error:
        if not retry_failed:
            return PreviousAttempt(FAILED, cause=f"{error}; launcher.retry_failed=true runs the job again")
        card = {"status": record.FAILED}
    if card["status"] == record.FINISHED:
        return PreviousAttempt(FINISHED, score=float(card["scores"].get("best/top1", "nan")))
    if card["status"] == record.PRUNED:
        return PreviousAttempt(PRUNED, cause=card["reason"])
    if card["status"] == record.INTERRUPTED:
        return PreviousAttempt(resumed=True)
    if card["status"] != record.FAILED:
        return PreviousAttempt(FAILED, cause=f"process {lock_holder(folder)} is writing its folder", held=True)
    if not retry_failed:
        return PreviousAttempt(FAILED, cause=f"{card['reason']} (before; launcher.retry_failed=true runs it again)")
    kept = folder / EARLIER
    place = kept / str(1 + len(list(kept.glob("*"))))
    place.mkdir(parents=True)
    for path in list(folder.iterdir()):
        if path != kept:
            path.rename(place / path.name)
    return PreviousAttempt()


def table(*, max_rows: int | None = None) -> "Table":
    """All jobs with their states; of more than `max_rows`, those that run, have failed or ended last."""
    from rich.table import Table

    counts = {state: sum(job.state == state for job in jobs) for state in (RUNNING, WAITING, PRUNED, FAILED)}
    title = ", ".join([f"{len(jobs)} jobs", *(f"{count} {state}" for state, count in counts.items() if count)])
    common = [word for word in jobs[0].overrides if all(word in job.overrides for job in jobs)] if len(jobs) > 1 else []
    result = Table(title=title, caption=f"all with {' '.join(common)}" if common else None)
    score = "best val/top1" if jobs and "trainer" in jobs[0].config else "score"
    for column in ("job", "overrides", "state", score, "cause"):
        result.add_column(column, justify="right" if column in ("job", score) else "left", overflow="fold")
    shown = jobs
    if max_rows is not None and len(jobs) > max_rows:
        urgent = [job for job in jobs if job.state in (RUNNING, FAILED)]
        others = [job for job in jobs if job.state in (FINISHED, PRUNED)]
        kept = {id(job) for job in [*urgent, *others[::-1]][:max_rows]}
        shown = [job for job in jobs if id(job) in kept]
    for job in shown:
        state, value = _state(job)
        result.add_row(
            str(job.number),
            " ".join(word for word in job.overrides if word not in common),
            state,
            "-" if value is None else f"{value:.4f}",
            job.cause or "",
            end_section=True,
        )
    return result


def _state(job: Job) -> tuple[str, float | None]:
    """The state of a job in words, and its best score so far."""
    if job.state != RUNNING:
        return job.state, job.score
    try:
        card = json.loads((job.folder / RUN_JSON).read_text())
    except (OSError, ValueError):
        card = {}
    words = [RUNNING]
    if card.get("last"):
        words.append(f"epoch {card['last']['epoch'] + 1}/{job.config.trainer.max_epochs}")
    if job.place:
        words.append(job.place)
    return ", ".join(words), (card.get("best") or {}).get("top1")


def log_unless_live(text: str) -> None:
    """Logs what happens to a job, unless a live table shows it."""
    if not live_tables:
        log.info("%s", text)


def report_end(job: Job, *, before: bool = False) -> None:
    """Says how a job has ended, now or in an earlier attempt."""
    score = f", {job.score:.4f}" if job.score is not None else ""
    log_unless_live(f"job {job.number}: {job.state}{' before' * before}{score}{f': {job.cause}' if job.cause else ''}")


@contextmanager
def watched() -> Iterator[Callable[[], None]]:
    """A table of the jobs that the caller brings up to date, in a terminal only."""
    from rich.live import Live

    from alexlab.output.terminal import Terminal

    console = Terminal()
    if not console.is_terminal:
        yield lambda: None
        return
    # Refreshed by hand: jobs are forked from this process, which must have no other threads.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        live_tables.append(live)
        try:
            yield lambda: live.update(table(max_rows=MAX_ROWS), refresh=True)
        finally:
            live_tables.pop()


def print_progress() -> None:
    """Prints the table between two jobs that use the terminal themselves."""
    from alexlab.output.terminal import Terminal

    console = Terminal()
    if console.is_terminal and len(jobs) > 1:
        console.print(table(max_rows=MAX_ROWS))


def print_jobs(folder: Path) -> None:
    """Prints what became of all jobs, the failed ones with their causes."""
    from alexlab.output.terminal import Terminal

    Terminal().print(table())
    print_line(f"sweep folder: {folder}")
    if any((job.folder / RUN_JSON).is_file() for job in jobs):
        print_line(f"tensorboard --logdir {folder}")


def write_report(folder: Path) -> None:
    """Writes the report of a sweep into its folder; a sweep without a single run has none."""
    from alexlab.runs.report import write_report as write

    try:
        print_line(f"report: {write([str(folder)], folder)}")
    except ConfigError:
        return
