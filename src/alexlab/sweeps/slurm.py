"""Runner for jobs on a SLURM cluster, or in processes of this machine, through submitit."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from alexlab.distributed.imports import python_path
from alexlab.errors import ConfigError, install_hint
from alexlab.output.numbers import counted
from alexlab.records.atomic import write_atomic
from alexlab.sweeps import squeue
from alexlab.sweeps.jobs import RUNNING, Job
from alexlab.sweeps.runner import POLL_S, JobRunner
from alexlab.sweeps.slurm_job import SIGNAL, job_main
from alexlab.sweeps.submitted import SubmittedJob, poll_slurm, shielded_from_terminal, terminate
from alexlab.sweeps.table import JobTable

SUBMITIT_DIR = ".submitit"  # in the sweep folder: files of submitit
JOB_IDS = "jobs.json"  # in SUBMITIT_DIR: SLURM's id of each job, by the name of its run folder
JOB_ID = re.compile(r"[0-9]+(_[0-9]+)?")


class Submitit(JobRunner):
    """Runner that submits jobs through submitit and waits for them. The sweep folder must be on a disk that all nodes share.

    On SLURM a job that reaches its time limit saves a checkpoint and requeues itself until it is finished. Jobs that are still
    queued when a sweep is resumed are not submitted again.

    Args:
        cluster: `slurm`, or `local` for processes of this machine; None selects slurm if `sbatch` is installed.
        jobs: maximum number of jobs at a time; None submits all as one job array. A search needs a number.
        timeout_min: time limit of each attempt at a job, in minutes.
        signal_delay_s: how long before the time limit a job is signalled.
        options: parameters of submitit's executor, such as `cpus_per_task` or `slurm_partition`; None keeps the default.
    """

    def __init__(
        self,
        cluster: str | None = None,
        jobs: int | None = None,
        timeout_min: int = 240,
        signal_delay_s: int = 120,
        **options: Any,
    ) -> None:
        self.cluster = cluster or ("slurm" if shutil.which("sbatch") else "local")
        self.remote = self.cluster == "slurm"
        self.jobs, self.timeout_min, self.signal_delay_s, self.options = jobs, timeout_min, signal_delay_s, options

    def prepare(self, sweep_dir: Path) -> None:
        self._check()
        # Read when submitit is imported, here and in the jobs.
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL.name.removeprefix("SIG")
        import submitit

        self.submitit_dir = sweep_dir / SUBMITIT_DIR
        self.executor = submitit.AutoExecutor(folder=self.submitit_dir / "%j", cluster=self.cluster)
        parameters = {"requeue": True} | dict(self.options.get("slurm_additional_parameters") or {})
        own = {"slurm_signal_delay_s": self.signal_delay_s, "slurm_additional_parameters": parameters}
        try:
            self.executor.update_parameters(name="alexlab", timeout_min=self.timeout_min, **(self.options | own))
        except (NameError, ValueError, AssertionError) as error:
            raise ConfigError(f"launcher: {str(error).splitlines()[0]}") from error
        self.queued = self._queued()  # before the run records are read: a job may end meanwhile

    def _check(self) -> None:
        from alexlab.distributed.devices import num_gpus

        if importlib.util.find_spec("submitit") is None:
            raise ConfigError(f"launcher=submitit needs the package submitit: {install_hint('submitit')}")
        if self.cluster not in ("slurm", "local"):
            raise ConfigError(f"launcher.cluster must be slurm, local or null; got {self.cluster}")
        if self.cluster == "slurm" and not shutil.which("sbatch"):
            raise ConfigError(
                "launcher.cluster=slurm needs SLURM's sbatch, which was not found; use launcher.cluster=local"
            )
        if self.cluster == "local" and (count := num_gpus()):
            raise ConfigError(
                f"launcher.cluster=local does not divide GPUs among jobs, and this machine has {counted(count, 'GPU')}; use "
                "launcher=parallel"
            )
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"launcher.jobs must be null or at least 1; got {self.jobs}")
        if not 1 <= self.signal_delay_s < 60 * self.timeout_min:
            raise ConfigError(
                f"launcher.signal_delay_s must be at least 1 and less than launcher.timeout_min, {60 * self.timeout_min:g} s; "
                f"got {self.signal_delay_s}"
            )

    def is_queued(self, job: Job) -> bool:
        return job.folder.name in self.queued

    def run(
        self,
        jobs: Iterator[Job],
        work: Callable[[Job], None],
        *,
        table: JobTable,
        on_end: Callable[[Job], None],
        restore: Callable[[], None],
    ) -> None:
        os.environ["PYTHONPATH"] = python_path()
        running: list[SubmittedJob] = []
        polled_s = 0.0
        with table.live() as refresh:
            try:
                while True:
                    batch = list(itertools.islice(jobs, None if self.jobs is None else self.jobs - len(running)))
                    if batch:
                        with shielded_from_terminal() if self.cluster == "local" else nullcontext():
                            running += self.submit(batch, work, table=table, restore=restore)
                    if not running:
                        break
                    refresh()
                    time.sleep(POLL_S)
                    if self.cluster == "slurm" and time.monotonic() - polled_s > squeue.QUEUE_S:
                        polled_s = time.monotonic()
                        poll_slurm(running)
                    for each in [each for each in running if each.is_done(self.cluster)]:
                        running.remove(each)
                        each.collect()
                        on_end(each.job)
                        table.report_end(each.job)
            finally:
                if self.cluster == "local":  # jobs of a cluster stay in its queue
                    terminate(running)

    def submit(
        self, batch: Sequence[Job], work: Callable[[Job], None], *, table: JobTable, restore: Callable[[], None]
    ) -> list[SubmittedJob]:
        """Submit jobs, and attach to those that an earlier attempt submitted.

        Args:
            batch: the jobs.
            work: as for `run`.
            table: as for `run`.
            restore: as for `run`.

        Raises:
            ConfigError: if the cluster refuses them.
        """
        import submitit

        fresh = sorted((job for job in batch if not self.is_queued(job)), key=_tasks)
        handles, is_accepted, before = [], False, {*self.submitit_dir.glob("*")}
        try:
            for (nodes, tasks_per_node), group in itertools.groupby(fresh, _tasks):
                self.executor.update_parameters(nodes=nodes, tasks_per_node=tasks_per_node)
                with self.executor.batch():  # an array, on SLURM
                    handles += [self.executor.submit(job_main, work, job, restore) for job in group]
                is_accepted = True
                # At once, so that a resumed sweep does not submit them again if a later group is refused.
                accepted = {job.folder.name: handle.job_id for job, handle in zip(fresh, handles, strict=False)}
                write_atomic(self.submitit_dir / JOB_IDS, json.dumps(self._job_ids() | accepted).encode())
        except Exception as error:
            if type(error).__module__.startswith("submitit"):
                if not is_accepted:  # leave nothing of jobs that are not queued
                    for path in {*self.submitit_dir.glob("*")} - before:
                        path.unlink()
                    if not before:
                        shutil.rmtree(self.submitit_dir, ignore_errors=True)
                reason = str(error).strip().splitlines()[-1]
                raise ConfigError(f"{self.cluster} refused the jobs: {reason}") from error
            raise
        submitted = [SubmittedJob(job, handle.task(0)) for job, handle in zip(fresh, handles, strict=True)]
        for job in filter(self.is_queued, batch):
            # Its result appears in the folder that it was submitted with.
            handle: Any = submitit.SlurmJob(self.submitit_dir / "%j", self.queued[job.folder.name], [0])
            submitted.append(SubmittedJob(job, handle, attached=True))
        for each in submitted:
            each.job.state, each.job.place = RUNNING, f"{self.cluster} {each.handle.job_id}"
            table.report_start(each.job)
        ids = self._job_ids() | {each.job.folder.name: each.handle.job_id for each in submitted}
        self.submitit_dir.mkdir(exist_ok=True)
        write_atomic(self.submitit_dir / JOB_IDS, json.dumps(ids).encode())
        return submitted

    def _job_ids(self) -> dict[str, str]:
        try:
            found = json.loads((self.submitit_dir / JOB_IDS).read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {name: job_id for name, job_id in found.items() if isinstance(job_id, str) and JOB_ID.fullmatch(job_id)}

    def _queued(self) -> dict[str, str]:
        """Return the ids of jobs that an earlier attempt at the sweep submitted and that have not ended, by folder name."""
        ids = self._job_ids()
        if self.cluster != "slurm" or not ids:
            return {}
        states = squeue.states(ids.values())
        if states is None:
            raise ConfigError(
                "jobs of this sweep may still be in SLURM's queue; squeue does not answer, try again later"
            )
        return {name: job_id for name, job_id in ids.items() if not squeue.has_ended(states[job_id])}


def _tasks(job: Job) -> tuple[int, int]:
    """Return the number of nodes of a job, and of the processes that SLURM starts on each.

    On one node SLURM starts one process, which forks the ranks; on several it starts each rank.
    """
    trainer = job.config.trainer if job.config is not None and "trainer" in job.config else {}
    nodes = int(trainer.get("num_nodes", 1))
    if nodes == 1:
        return 1, 1
    devices = trainer["devices"]
    if not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"trainer.devices must be a number for a job on {nodes} nodes; got {devices}")
    return nodes, devices
