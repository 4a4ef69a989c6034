"""Runner for jobs as tasks of Ray, on a running cluster or on this machine."""

import importlib.util
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alexlab.distributed.signals import signals
from alexlab.errors import ConfigError, install_hint
from alexlab.sweeps.jobs import FAILED, RUNNING, Job
from alexlab.sweeps.ray_cluster import check_answers, connected
from alexlab.sweeps.ray_job import RayWork, run_task
from alexlab.sweeps.runner import POLL_S, JobRunner
from alexlab.sweeps.table import JobTable

MAX_RETRIES = 3  # attempts to retry a job whose worker was lost; Ray's own default
STOP_POLL_S = 0.2

log = logging.getLogger(__name__)

Resources = Mapping[str, float]


class Ray(JobRunner):
    """Runner of jobs as Ray tasks, each with CPUs and GPUs for its devices on one node.

    A job whose worker is lost is retried in its own folder, from its last checkpoint.

    Args:
        address: a running Ray cluster: `auto`, `HOST:PORT` or `ray://HOST:PORT`; None starts Ray on this machine.
        cpus_per_device: CPUs for each of `trainer.devices`.
        gpus_per_device: GPUs for the device of a job; at most 1. A job with several devices gets whole GPUs.
    """

    def __init__(self, address: str | None = None, cpus_per_device: float = 1, gpus_per_device: float = 1) -> None:
        self.address, self.remote = address, address is not None
        self.cpus_per_device, self.gpus_per_device = cpus_per_device, gpus_per_device

    def prepare(self, sweep_dir: Path) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(f"launcher=ray needs the package ray: {install_hint('ray')}")
        if self.cpus_per_device <= 0:
            raise ConfigError(f"launcher.cpus_per_device must be positive; got {self.cpus_per_device}")
        if not 0 < self.gpus_per_device <= 1:
            raise ConfigError(f"launcher.gpus_per_device must be above 0 and at most 1; got {self.gpus_per_device}")
        if self.address is not None:
            check_answers(self.address)

    def needs(self, job: Job, nodes: Sequence[Resources]) -> dict[str, float]:
        """Return the Ray resources of a job, which must be free on one node.

        Args:
            job: any job.
            nodes: resources of each node of the cluster.

        Raises:
            ConfigError: if `trainer.devices` is wrong, or no node has enough.
        """
        from alexlab.distributed.devices import count_devices

        trainer: Any = OmegaConf.to_container(job.config.trainer)
        accelerator, devices = trainer["accelerator"], trainer["devices"]
        most = int(max((node.get("GPU", 0) for node in nodes), default=0))
        on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and most > 0)
        if on_gpu and isinstance(devices, list):
            raise ConfigError(
                f"trainer.devices must be a number with launcher=ray, which selects the GPUs; got {devices}"
            )
        count = count_devices(devices, available=max(1, most) if on_gpu else 1)
        cpus = count * self.cpus_per_device
        needed = {"CPU": cpus if cpus < 1 else math.ceil(cpus)}
        if on_gpu:
            needed["GPU"] = self.gpus_per_device if count == 1 else count
        if not any(_fits(needed, node) for node in nodes):
            found = "; ".join(sorted({_shown(node) for node in nodes})) or "none"
            raise ConfigError(f"the job needs a node with {_shown(needed)}; the nodes of the Ray cluster have {found}")
        return needed

    def run(
        self,
        jobs: Iterator[Job],
        work: Callable[[Job], None],
        *,
        table: JobTable,
        on_end: Callable[[Job], None],
        restore: Callable[[], None],
    ) -> None:
        # The loop polls for signals: Ray drops an exception that a handler raises while Ray waits.
        with signals.handler(lambda signum: None), connected(self.address) as ray, table.live() as refresh:
            tasks = RayTasks(ray, RayWork(work, restore, os.getcwd()), table)
            following: Job | None = None
            try:
                while True:
                    signals.raise_pending()
                    while following := following or next(jobs, None):
                        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                        try:
                            needed = self.needs(following, nodes)
                        except ConfigError as error:
                            following.end(FAILED, cause=str(error))
                            on_end(following)
                            table.report_end(following)
                            following = None
                            continue
                        if not tasks.has_room(needed, nodes):
                            break
                        tasks.start(following, needed)
                        following = None
                    if not tasks.running:
                        break
                    refresh()
                    time.sleep(POLL_S)
                    for job in tasks.collect():
                        on_end(job)
                        table.report_end(job)
            finally:
                tasks.stop()


def _fits(needed: Resources, resources: Resources) -> bool:
    return all(amount <= resources.get(name, 0) for name, amount in needed.items())


def _shown(resources: Resources) -> str:
    return ", ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name))


class RayTasks:
    """Jobs that were submitted to Ray and have not ended.

    Args:
        ray: the module, connected.
        work: work of the Ray tasks.
        table: all jobs of the sweep.
    """

    def __init__(self, ray: Any, work: RayWork, table: JobTable) -> None:
        self.ray, self.work, self.table = ray, work, table
        self.running: dict[Any, tuple[Job, Resources]] = {}
        self.lost: dict[int, int] = {}  # lost workers by number of the job

    def has_room(self, needed: Resources, nodes: Sequence[Resources]) -> bool:
        """Return whether the cluster has room for a job next to the running ones."""
        taken = [*(each for _, each in self.running.values()), needed]
        return all(
            sum(each.get(name, 0) for each in taken) <= sum(node.get(name, 0) for node in nodes) for name in needed
        )

    def start(self, job: Job, needed: Resources, *, retried: bool = False) -> None:
        """Submit a job to Ray."""
        job.state, job.place = RUNNING, _shown(needed)
        self.table.report_start(job)
        remote = self.ray.remote(
            num_cpus=needed["CPU"],
            num_gpus=needed.get("GPU", 0),
            max_retries=0,  # `collect` retries and counts
            name=f"job {job.number}",
        )(run_task)
        self.running[remote.remote(self.work, job, max(1, int(needed["CPU"])), retried)] = job, needed

    def collect(self) -> Iterator[Job]:
        """Yield the jobs that have ended; one whose worker was lost is started again."""
        for ref in self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)[0]:
            job, needed = self.running.pop(ref)
            try:
                state, score, cause = self.ray.get(ref)
            except self.ray.exceptions.RayTaskError as error:
                state, score, cause = FAILED, None, str(error).strip().splitlines()[-1]
            except self.ray.exceptions.RayError as error:
                count = self.lost[job.number] = self.lost.get(job.number, 0) + 1
                reason = f"its Ray worker was lost ({type(error).__name__})"
                if count <= MAX_RETRIES:
                    log.warning("job %d: %s; retrying", job.number, reason)
                    self.start(job, needed, retried=True)
                    continue
                state, score, cause = FAILED, None, f"{reason} {count} times; {job.resume_hint()}"
            job.end(state, score=score, cause=cause)
            yield job

    def stop(self) -> None:
        """Interrupt the running jobs and wait until they have saved their checkpoints."""
        refs = list(self.running)
        while refs:
            for ref in refs:  # repeatedly: a worker that is starting may miss it
                self.ray.cancel(ref)
            refs = self.ray.wait(refs, num_returns=len(refs), timeout=0)[1]
            time.sleep(STOP_POLL_S)
