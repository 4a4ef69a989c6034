"""A job in a forked process, whose output goes to a file in the run folder."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

from alexlab.distributed import hardware
from alexlab.distributed.failures import translate_errors
from alexlab.distributed.signals import Interrupted, signals
from alexlab.errors import AlexlabError
from alexlab.records.layout import OUTPUT
from alexlab.sweeps.jobs import FAILED, Job
from alexlab.sweeps.slots import Slot

MAX_CAUSE = 10_000  # characters of the cause of a failed job


class JobProcess:
    """A job in its own process, started on construction.

    Args:
        job: the job.
        work: runs a job and records its outcome in it.
        slot: cores and GPUs of the job.
    """

    def __init__(self, job: Job, work: Callable[[Job], None], slot: Slot) -> None:
        self.job, self.slot = job, slot
        context = multiprocessing.get_context("fork")
        self.receiver, sender = context.Pipe(duplex=False)
        self.process: ForkProcess = context.Process(target=_run, args=(job, work, slot, sender, os.getpid()))
        self.process.start()
        sender.close()

    def collect(self) -> None:
        """Wait for the process to exit and record the outcome in the job."""
        self.process.join()
        try:
            state, score, cause = self.receiver.recv()
        except EOFError:
            code = self.process.exitcode or 0
            event = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
            state, score, cause = FAILED, None, f"its process {event}; see {self.job.folder / OUTPUT}"
        self.receiver.close()
        self.job.end(state, score=score, cause=cause)


def terminate(running: Sequence[JobProcess]) -> None:
    """Forward the signal that stopped this process and wait, so that each job saves a checkpoint; a second one kills them."""
    try:
        for each in running:
            if each.process.is_alive() and each.process.pid is not None:
                os.kill(each.process.pid, signals.first or signal.SIGTERM)
        for each in running:
            each.process.join()
    finally:
        for each in running:
            if each.process.is_alive():
                each.process.kill()
            each.process.join()
            each.receiver.close()


def _run(job: Job, work: Callable[[Job], None], slot: Slot, sender: Connection, parent: int) -> None:
    """Run a job in the forked process and send its outcome."""
    hardware.die_with_parent(parent)
    signals.reset_after_fork()
    slot.bind()
    assert sys.__stdout__ is not None and sys.__stderr__ is not None
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # the live table has replaced them
    try:
        with translate_errors(job.folder):
            job.folder.mkdir(parents=True, exist_ok=True)
            redirect_output(job.folder / OUTPUT)
        work(job)
    except AlexlabError as error:
        job.end(FAILED, cause=str(error))
    except Interrupted as error:  # by a signal to this process alone, or the whole sweep was stopped
        job.interrupt(error)
    # More than 64 KiB would block until the parent reads, which waits for this process to exit.
    sender.send((job.state, job.score, job.cause and job.cause[:MAX_CAUSE]))


def redirect_output(path: Path) -> None:
    """Append stdout and stderr of this process, and of those that it starts, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
