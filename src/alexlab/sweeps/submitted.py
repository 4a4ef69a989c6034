"""A job submitted to SLURM or to submitit's local executor, as seen by the sweep that waits for it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alexlab.errors import ConfigError
from alexlab.records.record import INTERRUPTED, RunRecord
from alexlab.sweeps import squeue
from alexlab.sweeps.jobs import FAILED, Job, previous_attempt


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
