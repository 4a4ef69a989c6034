"""Process of a job that submitit started, on SLURM or on this machine."""

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext

from alexlab.distributed import hardware
from alexlab.distributed.signals import Interrupted, signals
from alexlab.errors import ConfigError
from alexlab.records.layout import OUTPUT, SLURM_LOG
from alexlab.sweeps import squeue
from alexlab.sweeps.jobs import FAILED, Job
from alexlab.sweeps.processes import redirect_output

SIGNAL = signal.SIGUSR1  # sent by SLURM shortly before the time limit


def job_main(
    work: Callable[[Job], None], job: Job, restore: Callable[[], None]
) -> tuple[str, float | None, str | None]:
    """Run a job and return its state, score and cause.

    Args:
        work: runs a job and records its outcome in it.
        job: the job.
        restore: restores the process-wide state of the process that submitted the job.
    """
    import submitit

    environment = submitit.JobEnvironment()
    is_local = environment.cluster == "local"
    if is_local:
        hardware.die_with_parent(os.getppid())
    restore()
    job.folder.mkdir(parents=True, exist_ok=True)
    is_first = environment.global_rank == 0  # the output of the others is in submitit's files only
    if is_first and not is_local:
        link = job.folder / SLURM_LOG
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(environment.paths.stderr, job.folder))
    if is_first:
        redirect_output(job.folder / OUTPUT)
    try:
        with signals.install() if is_local else nullcontext():  # submitit's handler ignores SIGTERM
            work(job)
    except Interrupted as error:
        if is_local:
            job.interrupt(error)
        elif not is_first:
            raise SystemExit(error.exit_code) from error
        else:
            _end_or_requeue(job, error, environment.job_id)
    return job.state, job.score, job.cause


def _end_or_requeue(job: Job, error: Interrupted, job_id: str) -> None:
    """Exit without a result if the job runs again: requeued at its time limit, or by SLURM after another signal."""
    if error.signum != SIGNAL:
        raise SystemExit(error.exit_code)
    if not squeue.made_progress(job.folder):
        job.end(FAILED, cause="launcher.timeout_min must be long enough for at least one step")
        return
    try:
        squeue.requeue(job_id)
    except ConfigError as refusal:
        job.end(FAILED, cause=f"{refusal}; {job.resume_hint()}")
        return
    raise SystemExit(error.exit_code)
