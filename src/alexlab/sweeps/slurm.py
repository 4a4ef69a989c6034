"""Jobs on a SLURM cluster, or in processes of this machine, by submitit. Imports no torch."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton

from alexlab.config import allowlist
from alexlab.distributed.signals import Interrupted
from alexlab.errors import ConfigError
from alexlab.runs.layout import OUTPUT, SLURM_LOG
from alexlab.runs.record import INTERRUPTED, RunRecord
from alexlab.sweeps import jobs as sweeps
from alexlab.sweeps import squeue
from alexlab.sweeps.jobs import FAILED, RUNNING, Job
from alexlab.sweeps.local import POLL_S, JobRunner, print_into

SUBMITIT_DIR = ".submitit"  # in the folder of the sweep: what submitit and the jobs leave
JOB_ID = re.compile(r"[0-9]+(_[0-9]+)?")
JOB_IDS = "jobs.json"  # in it, the number that SLURM has given each job, by the name of its folder
SIGNAL = signal.SIGUSR1  # by which SLURM says that the time is nearly up


class Submitit(JobRunner):
    """Hands jobs to submitit and waits for them; they read and write the folder of the sweep, which all nodes must share.

    On SLURM a job whose time is nearly up saves a checkpoint and queues itself again, until it is finished. Those that are in
    the queue when a sweep is resumed are not submitted a second time.

    Args:
        cluster: `slurm`, or `local`, processes of this machine; None is slurm where there is `sbatch`.
        jobs: at most so many at once; None is all, as one job array. A search needs a number.
        timeout_min: of each attempt at a job.
        signal_delay_s: so long before its end a job is told.
        options: of submitit's executor, as `cpus_per_task`, `gpus_per_node` or `slurm_partition`; None is not passed on.
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
        if not 1 <= self.signal_delay_s < 60 * self.timeout_min:
            raise ConfigError(
                f"launcher.signal_delay_s must be at least 1 and less than launcher.timeout_min, {60 * self.timeout_min:g} s; "
                f"got {self.signal_delay_s}"
            )
        # Read when submitit is imported, here and in the jobs.
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL.name.removeprefix("SIG")
        import submitit

        self.submitit_dir = sweep_dir / SUBMITIT_DIR
        self.executor = submitit.AutoExecutor(folder=self.submitit_dir / "%j", cluster=self.cluster)
        more = {"requeue": True} | dict(self.options.get("slurm_additional_parameters") or {})
        own = {"slurm_signal_delay_s": self.signal_delay_s, "slurm_additional_parameters": more}
        try:
            self.executor.update_parameters(name="alexlab", timeout_min=self.timeout_min, **(self.options | own))
        except (NameError, ValueError, AssertionError) as error:
            raise ConfigError(f"launcher: {str(error).splitlines()[0]}") from error
        self.queued = self._queued()  # before anybody reads what they have left: one may end while it is read

    def __getstate__(self) -> dict[str, Any]:
        """What goes to the jobs with their work: not what has submitted them."""
        return {name: value for name, value in self.__dict__.items() if name != "executor"}

    def like_job(self) -> Any:
        return nullcontext()

    def is_queued(self, job: Job) -> bool:
        return job.folder.name in self.queued

    def run(self, jobs: Iterator[Job], work: Callable[[Job], None], ended: Callable[[Job], None]) -> None:
        # A job imports this package as this process does, installed or not.
        source = str(Path(__file__).parents[2])
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        running: list[_Submitted] = []
        exhausted, asked_s = False, 0.0
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
                    if self.cluster == "slurm" and time.monotonic() - asked_s > squeue.QUEUE_S:
                        asked_s = time.monotonic()
                        _poll(running)
                    for each in [each for each in running if each.done(self.cluster)]:
                        running.remove(each)
                        each.collect()
                        ended(each.job)
                        sweeps.report_end(each.job)
            finally:
                if self.cluster == "local":  # those of a cluster stay in its queue
                    for each in running:
                        each.handle.cancel()

    def _submit(self, batch: Sequence[Job], work: Callable[[Job], None]) -> list["_Submitted"]:
        import submitit

        fresh = sorted((job for job in batch if not self.is_queued(job)), key=_tasks)
        handles = []
        try:
            for (nodes, tasks_per_node), alike in itertools.groupby(fresh, _tasks):
                self.executor.update_parameters(nodes=nodes, tasks_per_node=tasks_per_node)
                with self.executor.batch():  # an array, on SLURM
                    for job in alike:
                        handles.append(
                            self.executor.submit(
                                _job_main, work, job, Singleton.get_state(), allowlist.trusted, sys.argv[0]
                            )
                        )
        except Exception as error:
            if type(error).__module__.startswith("submitit"):
                raise ConfigError(f"{self.cluster} takes no job: {str(error).strip().splitlines()[-1]}") from error
            raise
        submitted = [_Submitted(job, handle.task(0)) for job, handle in zip(fresh, handles, strict=True)]
        for job in filter(self.is_queued, batch):  # it leaves its word where it was told to
            handle: Any = submitit.SlurmJob(self.submitit_dir / "%j", self.queued[job.folder.name], [0])
            submitted.append(_Submitted(job, handle, attached=True))
        for each in submitted:
            each.job.state, each.job.place = RUNNING, f"{self.cluster} {each.handle.job_id}"
            sweeps.log_unless_live(f"job {each.job.number}: {' '.join(each.job.overrides)} ({each.job.place})")
        known = self._job_ids() | {each.job.folder.name: each.handle.job_id for each in submitted}
        self.submitit_dir.mkdir(exist_ok=True)
        (self.submitit_dir / JOB_IDS).write_text(json.dumps(known))
        return submitted

    def _job_ids(self) -> dict[str, str]:
        try:
            found = json.loads((self.submitit_dir / JOB_IDS).read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {name: number for name, number in found.items() if isinstance(number, str) and JOB_ID.fullmatch(number)}

    def _queued(self) -> dict[str, str]:
        """The jobs that an earlier attempt at the sweep has submitted and that have not ended: folder and number."""
        numbers = self._job_ids()
        if self.cluster != "slurm" or not numbers:
            return {}
        states = squeue.states(numbers.values())
        if states is None:
            raise ConfigError("SLURM must say whether jobs of this sweep are in its queue; squeue does not answer")
        return {name: number for name, number in numbers.items() if not squeue.has_ended(states[number])}


def _tasks(job: Job) -> tuple[int, int]:
    """Return the number of nodes of a job, and of the processes that SLURM starts on each.

    On one node it starts one, which forks the ranks; on several it starts each rank.
    """
    trainer = job.config.trainer if job.config is not None and "trainer" in job.config else {}
    nodes = int(trainer.get("num_nodes", 1))
    if nodes == 1:
        return 1, 1
    devices = trainer["devices"]
    if not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"trainer.devices must be a number for a job of {nodes} nodes; got {devices}")
    return nodes, devices


@dataclass
class _Submitted:
    """A job and what submitit knows of it.

    Args:
        job, handle: both.
        attached: it was submitted by an earlier attempt at the sweep.
        state: what SLURM says of it.
        ended_s: since when it says that it has ended; 0 while it has not.
    """

    job: Job
    handle: Any
    attached: bool = False
    state: str = ""
    ended_s: float = 0.0

    def done(self, cluster: str) -> bool:
        """Whether it has left its word, or has ended without one."""
        if cluster == "local":
            return bool(self.handle.done())
        if self.handle.paths.result_pickle.exists():
            return True
        return self.ended_s > 0 and time.monotonic() - self.ended_s > squeue.LAG_S

    def collect(self) -> None:
        """Take its result, or say what is known of its end."""
        import submitit

        if self.attached:  # the folder may be a stranger's, and a result is a pickle
            found = sweeps.previous_attempt(self.job.folder)
            if found.state is None or found.held:
                self.job.end(FAILED, cause=self._cause())
            else:
                self.job.end(found.state, score=found.score, cause=found.cause)
            return
        try:
            if self.ended_s and not self.handle.paths.result_pickle.exists():
                raise submitit.core.utils.UncompletedJobError
            state, score, cause = self.handle.result()
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
            state, score, cause = FAILED, None, self._cause()
        self.job.end(state, score=score, cause=cause)

    def _cause(self) -> str:
        try:
            card = RunRecord(self.job.folder).read()
        except ConfigError:
            card = {"status": None}
        known = [str(card["reason"])] if card["status"] == INTERRUPTED else []
        if self.state:
            known.append(f"SLURM: {self.state.lower()}")
        if card["status"] == INTERRUPTED:
            return f"{', '.join(known)}; {self.job.resume_hint()}"
        return f"{', '.join(known) or 'its process has left no word'}; see {self.handle.paths.stderr}"


def _poll(running: Sequence[_Submitted]) -> None:
    """Asks SLURM for the states of the jobs."""
    found = squeue.states([each.handle.job_id for each in running])
    if found is None:
        return
    for each in running:
        each.state = found[each.handle.job_id]
        each.job.place = f"slurm {each.handle.job_id}" + f", {each.state.lower()}" * (each.state != "RUNNING")
        if not squeue.has_ended(each.state):
            each.ended_s = 0.0
        elif not each.ended_s:
            each.ended_s = time.monotonic()


def _job_main(
    work: Callable[[Job], None], job: Job, state: Any, trusted: list[str], command: str
) -> tuple[str, float | None, str | None]:
    """What the process of a job does, with Hydra's global state of the process that has submitted it."""
    import submitit

    from alexlab.cli.command import register

    register()
    allowlist.trusted.extend(trusted)
    Singleton.set_state(state)
    sys.argv[:] = [command]
    place = submitit.JobEnvironment()
    job.folder.mkdir(parents=True, exist_ok=True)
    first = place.global_rank == 0  # what the others print is in the files of submitit only
    if first and place.cluster == "slurm":
        log = job.folder / SLURM_LOG
        log.unlink(missing_ok=True)
        log.symlink_to(os.path.relpath(place.paths.stderr, job.folder))
    if first:
        print_into(job.folder / OUTPUT)
    try:
        work(job)
    except Interrupted as error:
        if place.cluster != "slurm":
            job.interrupted(error)
        elif not first:
            raise SystemExit(error.exit_code) from error
        else:
            _end_or_requeue(job, error, place.job_id)
    return job.state, job.score, job.cause


def _end_or_requeue(job: Job, error: Interrupted, job_id: str) -> None:
    """Ends the process of a job that a signal has stopped, so that it runs again where its time was up.

    It leaves no word: after another signal SLURM knows whether the job runs again.
    """
    if error.signum != SIGNAL:
        raise SystemExit(error.exit_code)
    if not squeue.made_progress(job.folder):
        job.end(FAILED, cause="launcher.timeout_min was over before a step was done; it must be longer")
        return
    try:
        squeue.requeue(job_id)
    except ConfigError as refusal:
        job.end(FAILED, cause=f"{refusal}; {job.resume_hint()}")
        return
    raise SystemExit(error.exit_code)
