"""The jobs of a sweep on a SLURM cluster, or in processes of this machine, by submitit. Imports no torch."""

import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton

from alexlab import sweeps, trust
from alexlab.engines import POLL_S
from alexlab.errors import ConfigError
from alexlab.signals import Stopped
from alexlab.sweeps import FAILED, RUNNING, Job

PAPERS = ".submitit"  # in the folder of the sweep: what submitit and the jobs leave


class Submitit:
    """Hands jobs to submitit and waits for them; they read and write the folder of the sweep, which all nodes must share.

    Args:
        cluster: `slurm`, or `local`, processes of this machine; None is slurm where there is `sbatch`.
        jobs: at most so many at once; None is all, as one job array. A search needs a number.
        timeout_min: of each job.
        options: of submitit's executor, as `cpus_per_task`, `gpus_per_node` or `slurm_partition`; None is not passed on.
    """

    def __init__(
        self, cluster: str | None = None, jobs: int | None = None, timeout_min: int = 240, **options: Any
    ) -> None:
        self.cluster = cluster or ("slurm" if shutil.which("sbatch") else "local")
        self.jobs, self.timeout_min, self.options = jobs, timeout_min, options

    def prepare(self, sweep_dir: Path) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise ConfigError("launcher=submitit needs the package submitit: pip install -e '.[submitit]'")
        if self.cluster not in ("slurm", "local"):
            raise ConfigError(f"launcher.cluster must be slurm, local or null; got {self.cluster}")
        if self.cluster == "slurm" and not shutil.which("sbatch"):
            raise ConfigError(
                "launcher.cluster=slurm needs SLURM's sbatch, which is not here; take launcher.cluster=local"
            )
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"launcher.jobs must be null or at least 1; got {self.jobs}")
        import submitit

        self.executor = submitit.AutoExecutor(folder=sweep_dir / PAPERS / "%j", cluster=self.cluster)
        try:
            self.executor.update_parameters(name="alexlab", timeout_min=self.timeout_min, **self.options)
        except (NameError, ValueError, AssertionError) as error:
            raise ConfigError(f"launcher: {str(error).splitlines()[0]}") from error

    def __getstate__(self) -> dict[str, Any]:
        """What goes to the jobs with their work: not what has submitted them."""
        return {name: value for name, value in self.__dict__.items() if name != "executor"}

    def as_a_job(self) -> Any:
        return nullcontext()

    def run(self, jobs: Iterator[Job], work: Callable[[Job], None], ended: Callable[[Job], None]) -> None:
        # A job imports this package as this process does, installed or not.
        source = str(Path(__file__).parents[1])
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        running: list[tuple[Job, Any]] = []
        exhausted = False
        with sweeps.watched() as show:
            try:
                while True:
                    batch: list[Job] = []
                    while not exhausted and (self.jobs is None or len(running) + len(batch) < self.jobs):
                        following = next(jobs, None)
                        exhausted = following is None
                        batch += [] if following is None else [following]
                    if batch:
                        running += self._submit(batch, work)
                    if not running:
                        break
                    show()
                    time.sleep(POLL_S)
                    for job, submitted in [pair for pair in running if pair[1].done()]:
                        running.remove((job, submitted))
                        self._collect(job, submitted)
                        ended(job)
                        sweeps.tell(job)
            finally:
                if self.cluster == "local":  # those of a cluster stay in its queue
                    for _, submitted in running:
                        submitted.cancel()

    def _submit(self, batch: list[Job], work: Callable[[Job], None]) -> list[tuple[Job, Any]]:
        submitted = []
        with self.executor.batch():  # an array, on SLURM
            for job in batch:
                submitted.append(self.executor.submit(_there, work, job, Singleton.get_state(), trust.trusted))
        for job, handle in zip(batch, submitted, strict=True):
            job.state, job.place = RUNNING, f"{self.cluster} {handle.job_id}"
            sweeps.say(f"job {job.number}: {' '.join(job.overrides)} ({job.place})")
        return list(zip(batch, submitted, strict=True))

    def _collect(self, job: Job, submitted: Any) -> None:
        import submitit

        try:
            state, score, cause = submitted.result()
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
            state, score, cause = FAILED, None, f"its process has left no word; see {submitted.paths.stderr}"
        job.end(state, score=score, cause=cause)


def _there(
    work: Callable[[Job], None], job: Job, state: Any, trusted: list[str]
) -> tuple[str, float | None, str | None]:
    """What the process of a job does, with Hydra's global state of the process that has submitted it."""
    from alexlab.command import register

    register()
    trust.trusted.extend(trusted)
    Singleton.set_state(state)
    try:
        work(job)
    except Stopped as error:
        job.stopped(error)
    return job.state, job.score, job.cause
