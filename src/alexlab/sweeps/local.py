"""Runners for jobs on this machine: one after the other, or several in parallel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alexlab.distributed import hardware
from alexlab.distributed.imports import import_lightning
from alexlab.distributed.signals import signals
from alexlab.errors import ConfigError
from alexlab.sweeps.jobs import RUNNING, Job
from alexlab.sweeps.processes import JobProcess, terminate
from alexlab.sweeps.runner import POLL_S, JobRunner
from alexlab.sweeps.slots import SlotPool
from alexlab.sweeps.table import JobTable


class Sequential(JobRunner):
    """Runner of one job at a time, which has the whole machine and the terminal."""

    def prepare(self, sweep_dir: Path) -> None:
        pass

    def run(
        self,
        jobs: Iterator[Job],
        work: Callable[[Job], None],
        *,
        table: JobTable,
        on_end: Callable[[Job], None],
        restore: Callable[[], None],
    ) -> None:
        for job in jobs:
            signals.raise_pending()  # a signal that arrived between two jobs
            job.state = RUNNING
            table.print_progress()
            table.report_start(job)
            work(job)
            on_end(job)


class Parallel(JobRunner):
    """Runner of several jobs in parallel, each with its own GPUs, or its share of the cores.

    The output of a job goes to `output.log` in its folder.

    Args:
        jobs: maximum number of jobs at a time.
        jobs_per_gpu: maximum number of jobs on one GPU.
    """

    def __init__(self, jobs: int = 2, jobs_per_gpu: int = 1) -> None:
        self.jobs, self.jobs_per_gpu = jobs, jobs_per_gpu

    def prepare(self, sweep_dir: Path) -> None:
        for name, value in (("jobs", self.jobs), ("jobs_per_gpu", self.jobs_per_gpu)):
            if value is None or value < 1:
                raise ConfigError(f"launcher.{name} must be at least 1; got {value}")

    @contextmanager
    def like_job(self) -> Iterator[None]:
        before = hardware.cores()
        hardware.bind_to(hardware.core_sets(self.jobs)[-1])
        try:
            yield
        finally:
            hardware.bind_to(before)

    def run(
        self,
        jobs: Iterator[Job],
        work: Callable[[Job], None],
        *,
        table: JobTable,
        on_end: Callable[[Job], None],
        restore: Callable[[], None],
    ) -> None:
        import_lightning()  # once, before the jobs are forked
        import alexlab.config.preflight  # noqa: F401
        from alexlab.distributed.devices import num_gpus

        pool = SlotPool(self.jobs, jobs_per_gpu=self.jobs_per_gpu, num_gpus=num_gpus())
        running: dict[Any, JobProcess] = {}
        following: Job | None = None
        with table.live() as refresh:
            try:
                while True:
                    while len(running) < self.jobs:
                        following = following or next(jobs, None)
                        slot = pool.acquire(_requested_gpus(following)) if following else None
                        if following is None or slot is None:
                            break
                        following.state, following.place = RUNNING, str(slot)
                        table.report_start(following)
                        started = JobProcess(following, work, slot)
                        running[started.process.sentinel] = started
                        following = None
                    if not running:
                        break
                    refresh()
                    for sentinel in wait(list(running), timeout=POLL_S):
                        ended = running.pop(sentinel)
                        ended.collect()
                        pool.release(ended.slot)
                        on_end(ended.job)
                        table.report_end(ended.job)
            finally:
                terminate(list(running.values()))


def _requested_gpus(job: Job) -> int | list[int]:
    from alexlab.distributed.devices import requested_gpus

    trainer = job.config.get("trainer")
    if trainer is None:
        return 0
    try:
        node: Any = OmegaConf.to_container(trainer)
        return requested_gpus(accelerator=node["accelerator"], devices=node["devices"])
    except ConfigError:
        return 0  # the job itself raises the error
