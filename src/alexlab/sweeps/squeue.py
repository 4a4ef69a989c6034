"""What SLURM says of jobs, and a job that queues itself again. Imports no torch."""

import getpass
import subprocess
from collections.abc import Iterable
from pathlib import Path

from alexlab.errors import ConfigError
from alexlab.runs.layout import LAST
from alexlab.runs.record import RunRecord

QUEUE_S = 10.0  # between two looks into the queue, which many users share
LAG_S = 15.0  # for which a job may have ended, or be unknown, before its word is on our disk
ASK_S = 60  # for which SLURM may take to answer
# Of a job that does not run again by itself: https://slurm.schedmd.com/squeue.html, "job state codes".
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
)
UNKNOWN = "not in the queue any more"


def states(ids: Iterable[str]) -> dict[str, str] | None:
    """The state of each job, as `RUNNING` or, with the reason, `PENDING (Resources)`; None when SLURM does not answer.

    The queue is asked, not the accounting, which many clusters do not have.

    Args:
        ids: of jobs of this user, `12` or, in an array, `12_3`.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}", "--format=%i|%T|%r"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_S).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    known = {}
    for line in lines:
        number, state, reason = [*line.strip().split("|", 2), "", ""][:3]
        waits = state == "PENDING" and reason not in ("", "None")
        known[number] = f"{state} ({reason})" if waits else state
    return {number: known.get(number, UNKNOWN) for number in ids}


def has_ended(state: str) -> bool:
    """Whether a job in this state runs no more."""
    return state == UNKNOWN or state.split(" ")[0] in ENDED


def requeue(job_id: str) -> None:
    """Puts the job that this process belongs to back into the queue.

    Raises:
        ConfigError: with SLURM's reason when it may not be.
    """
    try:
        subprocess.run(["scontrol", "requeue", job_id], capture_output=True, text=True, check=True, timeout=ASK_S)
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"SLURM does not queue job {job_id} again: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"SLURM does not queue job {job_id} again: {error}") from error


def made_progress(run_dir: Path) -> bool:
    """Whether the last attempt at a run has saved a checkpoint: one that does not would be queued for ever."""
    try:
        begun_s = RunRecord(run_dir).read()["attempts"][-1]["start_s"]
        return bool((run_dir / LAST).stat().st_mtime >= begun_s)
    except (OSError, ConfigError, KeyError):
        return False
