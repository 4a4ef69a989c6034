"""Process of a job on a node of a Ray cluster."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait

from alexlab.distributed import hardware
from alexlab.distributed.signals import signals
from alexlab.sweeps.jobs import FAILED, Job, PreviousAttempt, previous_attempt
from alexlab.sweeps.processes import JobProcess
from alexlab.sweeps.slots import Slot
from alexlab.sweeps.work import keep_hydra_folder

POLL_S = 0.2
RELEASE_S = 10.0  # how long the processes of a lost worker may take to exit


@dataclass(frozen=True)
class RayWork:
    """Work of the Ray tasks of a sweep.

    Args:
        work: runs a job and records its outcome in it.
        restore: restores the process-wide state of the process that started the sweep.
        working_dir: working directory of that process.
    """

    work: Callable[[Job], None]
    restore: Callable[[], None]
    working_dir: str


def run_task(work: RayWork, job: Job, num_cores: int, retried: bool) -> tuple[str, float | None, str | None]:
    """Run a job in a process forked from the Ray worker, and return its state, score and cause.

    Args:
        work: work of the Ray tasks of the sweep.
        job: the job.
        num_cores: number of CPU cores of the job.
        retried: whether the worker of an earlier attempt was lost.
    """
    # `ray.cancel` calls the handler of SIGINT unless the signal is ignored, as in background processes of a shell.
    # Ray blocks the signal itself; the ranks of the job would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        os.chdir(work.working_dir)
    except OSError as error:
        return FAILED, None, f"the nodes of a Ray cluster must share the disk of the sweep; {error}"
    import alexlab.config.preflight  # noqa: F401 - once for all jobs of this worker

    if retried:
        previous = _released_attempt(job)
        if previous.state is not None:
            return previous.state, previous.score, previous.cause
        if previous.resumed:
            keep_hydra_folder(job.config)

    def restored_work(job: Job) -> None:
        work.restore()
        os.environ[hardware.CORES] = str(num_cores)
        work.work(job)

    with signals.install(), signals.handler(lambda signum: None):
        _wait(JobProcess(job, restored_work, Slot(0, [])))
    return job.state, job.score, job.cause


def _released_attempt(job: Job) -> PreviousAttempt:
    """Return the result of the attempt whose worker was lost, once its processes have released the run folder."""
    end_s = time.monotonic() + RELEASE_S
    while (previous := previous_attempt(job.folder)).held and time.monotonic() < end_s:
        time.sleep(POLL_S)
    return previous


def _wait(process: JobProcess) -> None:
    """Wait for the process of a job, forwarding the first signal to it; a second one kills it."""
    forwarded = False
    try:
        while not wait([process.process.sentinel], timeout=POLL_S):
            if signals.first is not None and not forwarded and process.process.pid is not None:
                forwarded = True
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # `ray.cancel` is repeated
                os.kill(process.process.pid, signals.first)
    finally:
        process.process.kill()  # does nothing to a process that has exited
    process.collect()
