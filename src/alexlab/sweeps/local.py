"""Where the jobs of a sweep run: one after the other, side by side on this machine, or on a cluster. Imports no torch at its top.

A runner is handed jobs one by one, as it has room for them: a search proposes the next one only then.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from alexlab.distributed import hardware
from alexlab.distributed.failures import translate_errors
from alexlab.distributed.signals import Interrupted, signals
from alexlab.errors import AlexlabError, ConfigError
from alexlab.runs.layout import OUTPUT
from alexlab.sweeps import jobs as sweeps
from alexlab.sweeps.jobs import FAILED, RUNNING, Job

POLL_S = 1.0  # between two looks at jobs that run elsewhere


class JobRunner(Protocol):
    """Runs jobs until there are no more.

    Attributes:
        remote: jobs run on other machines, whose devices are not known here.
    """

    remote: bool = False

    def prepare(self, sweep_dir: Path) -> None:
        """Raises ConfigError when it cannot run any job; called first."""

    def is_queued(self, job: Job) -> bool:
        """Whether a job of an earlier attempt at the sweep was still with it at `prepare`; `run` waits for such a job."""
        return False  # where jobs end with the process that has started them

    def run(self, jobs: Iterator[Job], work: Callable[[Job], None], ended: Callable[[Job], None]) -> None:
        """Runs jobs.

        Args:
            jobs: asked for the next one whenever there is room.
            work: runs a job and says in it what became of it.
            ended: told of each job, in this process.
        """

    def like_job(self) -> Any:
        """A context in which this process has the cores that one job will have."""


class Sequential(JobRunner):
    """One job after the other, each with the whole machine and the terminal."""

    def prepare(self, sweep_dir: Path) -> None:
        pass

    def run(self, jobs: Iterator[Job], work: Callable[[Job], None], ended: Callable[[Job], None]) -> None:
        for job in jobs:
            signals.raise_pending()  # one that the last job has not been told
            job.state = RUNNING
            sweeps.print_progress()
            sweeps.log_unless_live(f"job {job.number}: {' '.join(job.overrides)}")
            work(job)
            ended(job)

    def like_job(self) -> Any:
        return nullcontext()


@dataclass
class Slot:
    """What one of several jobs on this machine may use.

    Args:
        number: of the slot.
        cores: logical processors; none where the system cannot bind a process to them.
        gpus: as in CUDA_VISIBLE_DEVICES; None leaves the choice to the job.
        taken: the GPUs that it has taken.
    """

    number: int
    cores: list[int]
    gpus: list[str] | None = None
    taken: list[int] = field(default_factory=list)

    def bind(self) -> None:
        """Binds this process to it."""
        hardware.bind_to(self.cores)
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)

    def __str__(self) -> str:
        if self.taken:
            return f"GPU {', '.join(map(str, self.taken))}"
        return f"core {', '.join(map(str, self.cores))}" if self.cores else f"slot {self.number}"


class SlotPool:
    """The cores and GPUs of this machine, shared out.

    Args:
        jobs: at once; the cores are divided by it.
        jobs_per_gpu: jobs on one GPU.
        num_gpus: of this machine.
    """

    def __init__(self, jobs: int, *, jobs_per_gpu: int, num_gpus: int) -> None:
        self.free_slots = list(range(jobs))
        self.core_sets = hardware.core_sets(jobs)
        self.jobs_per_gpu = jobs_per_gpu
        self.load = [0] * num_gpus
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        self.names = visible.split(",") if visible else [str(index) for index in range(num_gpus)]

    def acquire(self, wanted: int | list[int]) -> Slot | None:
        """A slot with so many GPUs, or with those; None while they are not free."""
        if not self.free_slots:
            return None
        free = [index for index, load in enumerate(self.load) if load < self.jobs_per_gpu]
        if isinstance(wanted, list):
            chosen = [index for index in wanted if index < len(self.load)]
            if not set(chosen) <= set(free):
                return None
        else:
            chosen = sorted(free, key=lambda index: self.load[index])[: min(wanted, len(self.load))]
            if len(chosen) < min(wanted, len(self.load)):
                return None
        number = self.free_slots.pop(0)
        for index in chosen:
            self.load[index] += 1
        names = [self.names[index] for index in sorted(chosen)] if isinstance(wanted, int) and chosen else None
        return Slot(number, self.core_sets[number], names, sorted(chosen))

    def release(self, slot: Slot) -> None:
        """Frees a slot."""
        for index in slot.taken:
            self.load[index] -= 1
        self.free_slots = sorted([*self.free_slots, slot.number])


class Parallel(JobRunner):
    """Several jobs side by side, each with GPUs of its own, or with its share of the cores.

    What a job prints goes to `output.log` in its folder.

    Args:
        jobs: at most so many at once.
        jobs_per_gpu: jobs on one GPU.
    """

    def __init__(self, jobs: int = 2, jobs_per_gpu: int = 1) -> None:
        self.jobs, self.jobs_per_gpu = jobs, jobs_per_gpu

    def prepare(self, sweep_dir: Path) -> None:
        for name, value in (("jobs", self.jobs), ("jobs_per_gpu", self.jobs_per_gpu)):
            if value < 1:
                raise ConfigError(f"launcher.{name} must be at least 1; got {value}")

    @contextmanager
    def like_job(self) -> Iterator[None]:
        before = hardware.cores()
        hardware.bind_to(hardware.core_sets(self.jobs)[-1])
        try:
            yield
        finally:
            hardware.bind_to(before)

    def run(self, jobs: Iterator[Job], work: Callable[[Job], None], ended: Callable[[Job], None]) -> None:
        import alexlab.training.loop  # noqa: F401 - torch and lightning are imported once, before the jobs are forked
        from alexlab.distributed.devices import num_gpus

        pool = SlotPool(self.jobs, jobs_per_gpu=self.jobs_per_gpu, num_gpus=num_gpus())
        running: dict[Any, JobProcess] = {}
        following: Job | None = None
        with sweeps.watched() as show:
            try:
                while True:
                    while len(running) < self.jobs:
                        following = following or next(jobs, None)
                        slot = pool.acquire(_requested_gpus(following)) if following else None
                        if following is None or slot is None:
                            break
                        started = JobProcess(following, work, slot)
                        running[started.process.sentinel] = started
                        following = None
                    if not running:
                        break
                    show()
                    for sentinel in wait(list(running), timeout=POLL_S):
                        done = running.pop(sentinel)
                        done.collect()
                        pool.release(done.slot)
                        ended(done.job)
                        sweeps.report_end(done.job)
            finally:
                _stop(list(running.values()))


class JobProcess:
    """A job in a process of its own.

    Args:
        job, work: what it does.
        slot: what it may use.
    """

    def __init__(self, job: Job, work: Callable[[Job], None], slot: Slot) -> None:
        self.job, self.slot = job, slot
        job.state, job.place = RUNNING, str(slot)
        sweeps.log_unless_live(f"job {job.number}: {' '.join(job.overrides)} ({slot})")
        context = multiprocessing.get_context("fork")
        self.answer, theirs = context.Pipe(duplex=False)
        self.process: ForkProcess = context.Process(target=_body, args=(job, work, slot, theirs, os.getpid()))
        self.process.start()
        theirs.close()

    def collect(self) -> None:
        """Takes what the process says became of the job; one that says nothing was ended."""
        self.process.join()
        try:
            state, score, cause = self.answer.recv()
        except EOFError:
            code = self.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            state, score, cause = FAILED, None, f"its process was ended by {how}; see {self.job.folder / OUTPUT}"
        self.answer.close()
        self.job.end(state, score=score, cause=cause)


def _stop(running: Sequence[JobProcess]) -> None:
    """Ends jobs by the signal that has ended this process: each writes a checkpoint and its card; a second signal kills them."""
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
            each.answer.close()


def _body(job: Job, work: Callable[[Job], None], slot: Slot, answer: Connection, parent: int) -> None:
    """What the process of a job does."""
    hardware.die_with_parent(parent)
    signals.reset_after_fork()
    slot.bind()
    assert sys.__stdout__ is not None and sys.__stderr__ is not None
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # the live table has put its own in their place
    try:
        with translate_errors(job.folder):
            job.folder.mkdir(parents=True, exist_ok=True)
            print_into(job.folder / OUTPUT)
        work(job)
    except AlexlabError as error:
        job.end(FAILED, cause=str(error))
    except Interrupted as error:  # by a signal to this process alone, or the sweep has ended too
        job.interrupted(error)
    answer.send((job.state, job.score, job.cause))


def print_into(path: Path) -> None:
    """Sends what this process and those that it starts print to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _requested_gpus(job: Job) -> int | list[int]:
    from alexlab.distributed.devices import requested_gpus

    trainer = job.config.get("trainer")
    if trainer is None:
        return 0
    try:
        devices: Any = OmegaConf.to_container(trainer)
        return requested_gpus(accelerator=devices["accelerator"], devices=devices["devices"])
    except ConfigError:
        return 0  # the job says what is wrong
