"""Table of the jobs of a sweep, shown on the terminal while they run and at the end."""

import json
import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig

from alexlab.errors import ConfigError
from alexlab.output.escape import print_line
from alexlab.output.numbers import counted
from alexlab.records.layout import RUN_JSON
from alexlab.records.optimized import VAL
from alexlab.sweeps.jobs import FAILED, FINISHED, PRUNED, RUNNING, WAITING, Job

if TYPE_CHECKING:
    from rich.table import Table

INDEX_AGE_S = 60  # of the index while a sweep runs: writing it for 500 runs takes 0.4 s
MAX_ROWS = 30  # while the sweep runs

log = logging.getLogger(__name__)


class JobTable:
    """All jobs of a sweep, in the order of their numbers.

    Attributes:
        jobs: the jobs.
        sweep_dir: folder of the sweep; None before it starts, and for a single run on a cluster.
        is_live: the table is shown on the terminal.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.sweep_dir: Path | None = None
        self.is_live = False

    def __reduce__(self) -> Any:
        return JobTable, ()  # the process of a job needs no other jobs

    def any_failed(self) -> bool:
        """Return whether any job failed."""
        return any(job.state == FAILED for job in self.jobs)

    def render(self, *, max_rows: int | None = None) -> "Table":
        """Return the table of all jobs, or of at most `max_rows`: running, failed and recently ended ones."""
        from rich.table import Table

        counts = {state: sum(job.state == state for job in self.jobs) for state in (RUNNING, WAITING, PRUNED, FAILED)}
        title = ", ".join(
            [counted(len(self.jobs), "job"), *(f"{count} {state}" for state, count in counts.items() if count)]
        )
        common = self._common_overrides()
        result = Table(title=title, caption=f"all with {' '.join(common)}" if common else None)
        metrics = {job.metric for job in self.jobs}
        score_header = f"best {self.jobs[0].metric}" if len(metrics) == 1 and None not in metrics else "score"
        for column in ("job", "overrides", "state", score_header, "cause"):
            result.add_column(column, justify="right" if column in ("job", score_header) else "left", overflow="fold")
        for job in self._shown(max_rows):
            state, score = _progress(job)
            result.add_row(
                str(job.number),
                " ".join(override for override in job.overrides if override not in common),
                state,
                "-" if score is None else f"{score:.4f}" if len(metrics) == 1 else f"{job.metric} {score:.4f}",
                job.cause or "",
                end_section=True,
            )
        return result

    def _common_overrides(self) -> list[str]:
        if len(self.jobs) < 2:
            return []
        first, *others = self.jobs
        return [override for override in first.overrides if all(override in job.overrides for job in others)]

    def _shown(self, max_rows: int | None) -> "list[Job]":
        if max_rows is None or len(self.jobs) <= max_rows:
            return self.jobs
        urgent = [job for job in self.jobs if job.state in (RUNNING, FAILED)]
        ended = [job for job in self.jobs if job.state in (FINISHED, PRUNED)]
        kept = {id(job) for job in [*urgent, *ended[::-1]][:max_rows]}
        return [job for job in self.jobs if id(job) in kept]

    def log_unless_live(self, message: str) -> None:
        """Log an event of a job, unless the live table shows it."""
        if not self.is_live:
            log.info("%s", message)

    def report_start(self, job: "Job") -> None:
        """Log the start of a job, unless the live table shows it."""
        place = f" ({job.place})" if job.place else ""
        self.log_unless_live(f"job {job.number}: {' '.join(job.overrides)}{place}")

    def report_end(self, job: "Job", *, before: bool = False) -> None:
        """Log how a job ended, now or in an earlier attempt, unless the live table shows it."""
        score = f", {job.score:.4f}" if job.score is not None else ""
        cause = f": {job.cause}" if job.cause else ""
        self.log_unless_live(f"job {job.number}: {job.state}{' in an earlier attempt' * before}{score}{cause}")
        if not before:
            from alexlab.records.index import refresh_index  # takes a tenth of a second

            refresh_index(job.folder, min_age_s=INDEX_AGE_S)

    @contextmanager
    def live(self) -> Iterator[Callable[[], None]]:
        """Show the table on a terminal; yield a function that refreshes it."""
        from rich.live import Live

        from alexlab.output.log_handler import log_terminal

        console = log_terminal()
        if not console.is_interactive:
            yield lambda: None
            return
        # Refreshed by hand: jobs are forked from this process, which must have no other threads.
        with Live(console=console, auto_refresh=False, transient=True) as live:
            self.is_live = True
            try:
                yield lambda: live.update(self.render(max_rows=MAX_ROWS), refresh=True)
            finally:
                self.is_live = False

    def print_progress(self) -> None:
        """Print the table on a terminal, between two jobs that use the terminal themselves."""
        from alexlab.output.terminal import Terminal

        console = Terminal()
        if console.is_terminal and len(self.jobs) > 1:
            console.print_table(self.render(max_rows=MAX_ROWS))

    def print_results(self) -> None:
        """Print all jobs with their scores and causes, and write the report of the sweep if there are any runs."""
        from alexlab.output.terminal import Terminal
        from alexlab.records.report import write_report

        sweep_dir = self.sweep_dir
        assert sweep_dir is not None
        Terminal().print_table(self.render())
        print_line(f"sweep folder: {sweep_dir}")
        if any((job.folder / RUN_JSON).is_file() for job in self.jobs):
            print_line(f"tensorboard --logdir {shlex.quote(str(sweep_dir))}")
        try:
            print_line(f"report: {write_report([str(sweep_dir)], sweep_dir)}")
        except ConfigError:  # no job has a run folder
            return


def _progress(job: "Job") -> tuple[str, float | None]:
    """Return the state of a job, with its epoch and place while it runs, and its best score so far."""
    if job.state != RUNNING:
        return job.state, job.score
    try:
        found = json.loads((job.folder / RUN_JSON).read_text())
    except (OSError, ValueError):
        found = {}
    parts = [RUNNING]
    if found.get("last"):
        parts.append(f"epoch {found['last']['epoch']}/{job.config.trainer.max_epochs}")
    if job.place:
        parts.append(job.place)
    return ", ".join(parts), (found.get("best") or {}).get((job.metric or "").removeprefix(VAL))


class SweepTask(Protocol):
    """Task function of a command, called by Hydra, with the methods that a sweep needs."""

    @property
    def table(self) -> JobTable:
        """All jobs of the sweep."""

    def __call__(self, config: DictConfig) -> float | None:
        """Run the task on the composed config of a job and return its score."""

    def check(self, config: DictConfig, *, remote: bool) -> None:
        """Raise AlexlabError if the job cannot run; `remote` jobs run on machines whose devices are unknown here."""
