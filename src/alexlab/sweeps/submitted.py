"""A job submitted to SLURM or to submitit's local executor, as seen by the sweep that waits for it."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alexlab.errors import ConfigError
from alexlab.records.record import INTERRUPTED, RunRecord
from alexlab.sweeps import squeue
from alexlab.sweeps.jobs import FAILED, Job, previous_attempt

STOP_POLL_S = 0.1  # between two polls of jobs that are being stopped
TERMINAL = (signal.SIGINT, signal.SIGHUP)  # signals that a terminal sends to all processes of a command


@dataclass
class SubmittedJob:
    """A job and submitit's handle to it.

    Args:
        job: the job.
        handle: submitit's job.
        attached: whether an earlier attempt at the sweep submitted it.
        state: SLURM's state of it.
        ended_s: time since which SLURM reports that it has ended; 0 before that.
    """

    job: Job
    handle: Any
    attached: bool = False
    state: str = ""
    ended_s: float = 0.0

    def is_done(self, cluster: str) -> bool:
        """Return whether the job has left a result, or ended without one."""
        if cluster == "local":
            return bool(self.handle.done())
        if self.handle.paths.result_pickle.exists():
            return True
        return self.ended_s > 0 and time.monotonic() - self.ended_s > squeue.LAG_S

    def collect(self) -> None:
        """Record the outcome in the job."""
        import submitit

        if (
            self.attached
        ):  # the folder may come from someone else, and a result is a pickle: read the run record instead
            found = previous_attempt(self.job.folder)
            if found.state is None or found.held:
                self.job.end(FAILED, cause=self._cause())
            else:
                self.job.end(found.state, score=found.score, cause=found.cause)
            return
        try:
            if self.ended_s and not self.handle.paths.result_pickle.exists():
                raise submitit.core.utils.UncompletedJobError
            state, score, cause = self.handle.result()
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
            state, score, cause = FAILED, None, self._cause()
        self.job.end(state, score=score, cause=cause)

    def _cause(self) -> str:
        try:
            record = RunRecord(self.job.folder).read()
        except ConfigError:
            record = {"status": None}
        known = [str(record["reason"])] if record["status"] == INTERRUPTED else []
        if self.state:
            known.append(f"SLURM: {self.state.lower()}")
        if record["status"] == INTERRUPTED:
            return f"{', '.join(known)}; {self.job.resume_hint()}"
        return f"{', '.join(known) or 'its process left no result'}; see {self.handle.paths.stderr}"


def poll_slurm(running: Sequence[SubmittedJob]) -> None:
    """Update the states of the jobs from SLURM's queue, if it answers."""
    states = squeue.states([each.handle.job_id for each in running])
    if states is None:
        return
    for each in running:
        each.state = states[each.handle.job_id]
        each.job.place = f"slurm {each.handle.job_id}" + f", {each.state.lower()}" * (each.state != "RUNNING")
        if not squeue.has_ended(each.state):
            each.ended_s = 0.0
        elif not each.ended_s:
            each.ended_s = time.monotonic()


@contextmanager
def shielded_from_terminal() -> Iterator[None]:
    """Block the signals of the terminal in processes started meanwhile; this process handles them afterwards.

    On SIGINT submitit's local controller kills its job one second later, before it can save a checkpoint.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def terminate(running: Sequence[SubmittedJob]) -> None:
    """Stop jobs on this machine and wait, so that each saves a checkpoint; a second signal kills them."""
    try:
        _stop(running, signal.SIGTERM)  # which submitit's controller forwards to its job
    finally:
        _stop(running, signal.SIGKILL)  # each job dies with its controller


def _stop(running: Sequence[SubmittedJob], signum: int) -> None:
    """Send a signal to the controllers of the jobs that have not ended, and wait until they exit."""
    waiting = [each for each in running if not each.is_done("local")]
    for each in waiting:
        os.kill(int(each.handle.job_id), signum)
    while not all(each.is_done("local") for each in waiting):
        time.sleep(STOP_POLL_S)
