"""Jobs of a sweep, and the results of earlier attempts at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexlab.distributed.signals import Interrupted
from alexlab.records.layout import EARLIER, RUN_JSON
from alexlab.records.lock import lock_holder
from alexlab.records.optimized import OptimizedMetric

WAITING, RUNNING, FINISHED, PRUNED, FAILED = "waiting", "running", "finished", "pruned", "failed"  # states of a job
MULTIRUN = "multirun.yaml"  # Hydra writes it into the folder of a sweep; nothing reads it
STORAGE = "optuna.journal"  # of a search, in the folder of the sweep


@dataclass
class Job:
    """One job of a sweep.

    Args:
        number: index of the job in the sweep.
        overrides: overrides of the job, without those of the launcher.
        folder: run folder.
        config: composed config, with the `hydra` node.
        state: waiting, running, finished, pruned or failed.
        score: best value of the optimized metric of a finished job.
        cause: why the job failed or was pruned.
        place: GPUs, cores or cluster job that it runs on.
        standalone: whether this is a single run for a cluster rather than a job of a sweep.
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

    @property
    def metric(self) -> str | None:
        """The optimized metric of a training."""
        name: str | None = self.config.get("optimized_metric")
        return name

    def end(self, state: str, *, score: float | None = None, cause: str | None = None) -> None:
        """Record how the job ended."""
        self.state, self.score, self.cause, self.place = state, score, cause, ""

    def interrupt(self, error: Interrupted) -> None:
        """Record that a signal to its process alone stopped the job."""
        self.end(FAILED, cause=f"{error}; {self.resume_hint()}")

    def resume_hint(self) -> str:
        """Return a hint on resuming the job, for messages."""
        if self.standalone:
            return f"resume it with resume={self.folder}"
        return f"resume the sweep with -m resume={self.folder.parent}"


@dataclass(frozen=True)
class PreviousAttempt:
    """Result of an earlier attempt at a job.

    Args:
        state: finished, pruned or failed if the job is not to be run again, else None.
        score: see `Job`.
        cause: reason for a failure or for pruning.
        resumed: whether the job was interrupted and is to be resumed.
        held: whether a process is writing its folder.
    """

    state: str | None = None
    score: float | None = None
    cause: str | None = None
    resumed: bool = False
    held: bool = False


def previous_attempt(folder: Path, *, retry_failed: bool = False) -> PreviousAttempt:
    """Return the result of an earlier attempt at a job.

    Args:
        folder: run folder of the job.
        retry_failed: run a failed job again, after moving the files of the failed attempt to `.earlier/<n>/` inside.
    """
    if not (folder / RUN_JSON).is_file():
        return PreviousAttempt()
    from alexlab.records import record

    try:
        found = record.RunRecord(folder).read()
    except record.CorruptError as error:
        if not retry_failed:
            return PreviousAttempt(FAILED, cause=f"{error}; launcher.retry_failed=true runs the job again")
        found = {"status": record.FAILED}
    if found["status"] == record.FINISHED:
        optimized = OptimizedMetric(**found["optimized"])
        return PreviousAttempt(FINISHED, score=float(found["scores"].get(f"best/{optimized.key}", "nan")))
    if found["status"] == record.PRUNED:
        return PreviousAttempt(PRUNED, cause=found["reason"])
    if found["status"] == record.INTERRUPTED:
        return PreviousAttempt(resumed=True)
    if found["status"] != record.FAILED:
        return PreviousAttempt(FAILED, cause=f"process {lock_holder(folder)} is still writing to its folder", held=True)
    if not retry_failed:
        return PreviousAttempt(
            FAILED, cause=f"{found['reason']} (in an earlier attempt; launcher.retry_failed=true runs the job again)"
        )
    _move_failed(folder)
    return PreviousAttempt()


def _move_failed(folder: Path) -> None:
    """Move the files of a failed attempt to `.earlier/<n>/`."""
    earlier = folder / EARLIER
    target = earlier / str(1 + len(list(earlier.glob("*"))))
    target.mkdir(parents=True)
    for path in list(folder.iterdir()):
        if path != earlier:
            path.rename(target / path.name)
