"""States of SLURM jobs, and requeueing of the job that this process belongs to."""

import getpass
import subprocess
from collections.abc import Iterable
from pathlib import Path

from alexlab.errors import ConfigError
from alexlab.records.layout import LAST
from alexlab.records.record import RunRecord

QUEUE_S = 10.0  # between two queries of the queue, which many users share
LAG_S = 15.0  # how long after a job has left the queue its result may take to appear on our disk
TIMEOUT_S = 60  # for a SLURM command to answer
# States of a job that does not run again by itself: https://slurm.schedmd.com/squeue.html, "job state codes".
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
)
UNKNOWN = "not in the queue any more"


def states(ids: Iterable[str]) -> dict[str, str] | None:
    """Return the state of each job, as `RUNNING` or, with the reason, `PENDING (Resources)`; None if SLURM does not answer.

    squeue is used rather than sacct, since many clusters have no accounting.

    Args:
        ids: ids of this user's jobs, `12` or, in an array, `12_3`.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}", "--format=%i|%T|%r"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    known = {}
    for line in result.stdout.splitlines():
        job_id, state, reason = [*line.strip().split("|", 2), "", ""][:3]
        has_reason = state == "PENDING" and reason not in ("", "None")
        known[job_id] = f"{state} ({reason})" if has_reason else state
    return {job_id: known.get(job_id, UNKNOWN) for job_id in ids}


def has_ended(state: str) -> bool:
    """Return whether a job in this state has ended."""
    return state == UNKNOWN or state.split(" ")[0] in ENDED


def requeue(job_id: str) -> None:
    """Requeue the job that this process belongs to.

    Raises:
        ConfigError: with SLURM's reason if it refuses.
    """
    try:
        subprocess.run(["scontrol", "requeue", job_id], capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        if error.returncode < 0:  # SLURM has requeued the job and ends its processes, scontrol among them
            return
        raise ConfigError(f"SLURM did not requeue job {job_id}: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"SLURM did not requeue job {job_id}: {error}") from error


def made_progress(run_dir: Path) -> bool:
    """Return whether the last attempt at a run saved a checkpoint; a job that does not would be requeued forever."""
    try:
        start_s = RunRecord(run_dir).read()["attempts"][-1]["start_s"]
        return bool((run_dir / LAST).stat().st_mtime >= start_s)
    except (OSError, ConfigError, KeyError):
        return False
