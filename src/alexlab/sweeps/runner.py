"""Interface of the runners of a sweep: sequential, parallel, SLURM and Ray."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from alexlab.sweeps.jobs import Job
from alexlab.sweeps.table import JobTable

POLL_S = 1.0  # between two polls of running jobs


class JobRunner(Protocol):
    """Runner of the jobs of a sweep. It takes a job whenever it has room, since a search proposes the next one only then.

    Attributes:
        remote: jobs run on other machines, whose devices are unknown here.
    """

    remote: bool = False

    def prepare(self, sweep_dir: Path) -> None:
        """Raise ConfigError if the runner cannot run any job; called first."""

    def is_queued(self, job: Job) -> bool:
        """Return whether a job of an earlier attempt at the sweep was still queued or running at `prepare`.

        `run` then waits for the job instead of starting it. Jobs of most runners end with the process that started them.
        """
        return False

    def run(
        self,
        jobs: Iterator[Job],
        work: Callable[[Job], None],
        *,
        table: JobTable,
        on_end: Callable[[Job], None],
        restore: Callable[[], None],
    ) -> None:
        """Run jobs.

        Args:
            jobs: jobs to run; the next one is taken whenever there is room.
            work: runs a job and records its outcome in it.
            table: all jobs of the sweep.
            on_end: called in this process for each job that ended.
            restore: called in processes on other machines, to restore the process-wide state of this one.
        """

    def like_job(self) -> AbstractContextManager[None]:
        """Return a context manager that gives this process the cores of one job."""
        return nullcontext()
