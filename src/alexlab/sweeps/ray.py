"""Jobs as tasks of Ray, on a running cluster or on this machine. Imports neither torch nor Ray at its top."""

import importlib.util
import logging
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from omegaconf import OmegaConf, open_dict

from alexlab import compat
from alexlab.config import allowlist
from alexlab.distributed import hardware
from alexlab.distributed.signals import HANDLED, Interrupted, signals
from alexlab.errors import ConfigError
from alexlab.sweeps import jobs as sweeps
from alexlab.sweeps.jobs import FAILED, RUNNING, Job
from alexlab.sweeps.local import POLL_S, JobProcess, JobRunner, Slot

CONNECT_S = 15.0  # for which a cluster may take to answer; Ray itself tries for two minutes
MAX_REPEATS = 3  # of a job whose worker was lost, as Ray itself repeats a task
STOP_POLL_S = 0.2  # between two looks at processes that are ending
HELD_S = 10.0  # for which the processes of a lost worker may take to end
OBJECT_STORE_BYTES = 80_000_000  # Ray's smallest; configs and scores pass through it, no images
SOURCE_DIR = Path(__file__).parents[2]
PROBE = "import sys, ray; ray.init(address=sys.argv[1], configure_logging=False, log_to_driver=False); ray.nodes()"
log = logging.getLogger(__name__)


class Ray(JobRunner):
    """Jobs as Ray tasks, each with CPUs and GPUs for its devices on one node.

    A job whose worker is lost is repeated in its own folder, from its last checkpoint.

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
            raise ConfigError("launcher=ray needs the package ray: pip install -e '.[ray]'")
        if self.cpus_per_device <= 0:
            raise ConfigError(f"launcher.cpus_per_device must be positive; got {self.cpus_per_device}")
        if not 0 < self.gpus_per_device <= 1:
            raise ConfigError(f"launcher.gpus_per_device must be above 0 and at most 1; got {self.gpus_per_device}")
        if self.address is not None:
            _check_answers(self.address)

    def like_job(self) -> Any:
        return nullcontext()

    def needs(self, job: Job, nodes: Sequence[dict[str, float]]) -> dict[str, float]:
        """Return the Ray resources of a job, which must be free on one node.

        Args:
            job: any job.
            nodes: the resources of each node of the cluster.

        Raises:
            ConfigError: if `trainer.devices` is wrong, or no node has enough.
        """
        from alexlab.distributed.devices import count_devices

        trainer: Any = OmegaConf.to_container(job.config.trainer)
        accelerator, devices = trainer["accelerator"], trainer["devices"]
        most = int(max((node.get("GPU", 0) for node in nodes), default=0))
        on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and most > 0)
        if on_gpu and isinstance(devices, list):
            raise ConfigError(f"Ray chooses the GPUs, so trainer.devices must be their number; got {devices}")
        count = count_devices(devices, available=max(1, most) if on_gpu else 1)
        cpus = count * self.cpus_per_device
        needed = {"CPU": cpus if cpus < 1 else math.ceil(cpus)}
        if on_gpu:
            needed["GPU"] = self.gpus_per_device if count == 1 else count
        if not any(_fits(needed, node) for node in nodes):
            have = "; ".join(sorted({_shown(node) for node in nodes})) or "none"
            raise ConfigError(f"the job needs a node with {_shown(needed)}; the nodes of the Ray cluster have {have}")
        return needed

    def run(self, jobs: Iterator[Job], work: Callable[[Job], None], ended: Callable[[Job], None]) -> None:
        # The loop looks at signals itself: Ray loses an exception of a handler that is called while Ray waits.
        with signals.handler(lambda signum: None), _connected(self.address) as ray, sweeps.watched() as show:
            tasks = _Tasks(ray, work)
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
                            ended(following)
                            sweeps.report_end(following)
                            following = None
                            continue
                        if not tasks.leave_room(needed, nodes):
                            break
                        tasks.start(following, needed)
                        following = None
                    if not tasks.running:
                        break
                    show()
                    time.sleep(POLL_S)
                    for job in tasks.collect():
                        ended(job)
                        sweeps.report_end(job)
            finally:
                tasks.stop()


def _fits(needed: dict[str, float], resources: dict[str, float]) -> bool:
    return all(amount <= resources.get(name, 0) for name, amount in needed.items())


def _shown(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name))


def _check_answers(address: str) -> None:
    """Raise ConfigError unless a Ray cluster answers, asked by a process of its own, which can be ended."""
    try:
        command = [sys.executable, "-c", PROBE, address]
        found = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=CONNECT_S)
        last = (found.stderr.strip().splitlines() or [f"exit code {found.returncode}"])[-1]
        reason = last if found.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"it has not answered for {CONNECT_S:g} s"
    if reason:
        raise ConfigError(
            f"launcher.address must be a running Ray cluster, auto, HOST:PORT or ray://HOST:PORT; cannot connect to {address}: "
            f"{reason}"
        )


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to Ray, or start it on this machine and shut it down at the end, leaving nothing."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Workers import this package as this process does, installed or not.
    path = os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE_DIR), *filter(None, [os.environ.get("PYTHONPATH")])])
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "configure_logging": False}
    temporary = None
    if address is None:
        # Without this variable Ray takes the address of the network instead of 127.0.0.1; it is read by the import.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # against other users
        temporary = tempfile.mkdtemp(prefix="alexlab_", dir="/tmp")  # the paths of its sockets must be short
        options |= {
            **compat.local_ray_options(temporary),
            "num_cpus": hardware.num_cores(),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    else:
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    import ray

    handlers = {signum: signal.getsignal(signum) for signum in HANDLED}
    try:
        with _in_groups_of_their_own():
            ray.init(**options)
        for signum, handler in handlers.items():  # Ray sets its own for SIGTERM
            signal.signal(signum, handler)
        yield ray
    except SystemExit as error:  # Ray's handler
        raise Interrupted(signal.SIGTERM) from error
    finally:
        ray.shutdown()
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        if temporary is not None:
            _remove(Path(temporary))


@contextmanager
def _in_groups_of_their_own() -> Iterator[None]:
    """Start Ray's processes outside of this process group.

    A terminal and `timeout` send a signal to the whole group. Ray would end with it and kill the jobs before they save.
    """
    starting = True
    os.register_at_fork(after_in_child=lambda: os.setpgid(0, 0) if starting else None)
    try:
        yield
    finally:
        starting = False


def _remove(folder: Path) -> None:
    """Remove a folder in which processes that are ending may still write for a moment."""
    end_s = time.monotonic() + HELD_S
    while folder.exists() and time.monotonic() < end_s:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            time.sleep(STOP_POLL_S)


class _Tasks:
    """The jobs that Ray has.

    Args:
        ray: the module, connected.
        work: runs a job.
    """

    def __init__(self, ray: Any, work: Callable[[Job], None]) -> None:
        self.ray, self.work = ray, work
        self.running: dict[Any, tuple[Job, dict[str, float]]] = {}
        self.repeats: dict[int, int] = {}

    def leave_room(self, needed: dict[str, float], nodes: Sequence[dict[str, float]]) -> bool:
        """Return whether a job fits beside those that run."""
        taken = [*(each for _, each in self.running.values()), needed]
        return all(
            sum(each.get(name, 0) for each in taken) <= sum(node.get(name, 0) for node in nodes) for name in needed
        )

    def start(self, job: Job, needed: dict[str, float], *, again: bool = False) -> None:
        """Hand a job to Ray."""
        job.state, job.place = RUNNING, _shown(needed)
        sweeps.log_unless_live(f"job {job.number}: {' '.join(job.overrides)} ({job.place})")
        task = self.ray.remote(
            num_cpus=needed["CPU"],
            num_gpus=needed.get("GPU", 0),
            max_retries=0,  # `collect` does it, and counts
            name=f"job {job.number}",
        )(_run_task)
        settings = (Singleton.get_state(), allowlist.trusted, sys.argv[0], os.getcwd(), max(1, int(needed["CPU"])))
        self.running[task.remote(self.work, job, settings, again)] = job, needed

    def collect(self) -> Iterator[Job]:
        """Yield the jobs that have ended; one whose worker was lost is started again."""
        for ref in self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)[0]:
            job, needed = self.running.pop(ref)
            try:
                state, score, cause = self.ray.get(ref)
            except self.ray.exceptions.RayTaskError as error:
                state, score, cause = FAILED, None, str(error).strip().splitlines()[-1]
            except self.ray.exceptions.RayError as error:
                count = self.repeats[job.number] = self.repeats.get(job.number, 0) + 1
                reason = f"its Ray worker was lost ({type(error).__name__})"
                if count <= MAX_REPEATS:
                    log.warning("job %d: %s; it is repeated", job.number, reason)
                    self.start(job, needed, again=True)
                    continue
                state, score, cause = FAILED, None, f"{reason} {count} times; {job.resume_hint()}"
            job.end(state, score=score, cause=cause)
            yield job

    def stop(self) -> None:
        """Interrupt the jobs that run and wait until they have saved their checkpoints."""
        refs = list(self.running)
        while refs:
            for ref in refs:  # again and again: a worker that is starting may not hear it
                self.ray.cancel(ref)
            refs = self.ray.wait(refs, num_returns=len(refs), timeout=0)[1]
            time.sleep(STOP_POLL_S)


def _run_task(
    work: Callable[[Job], None], job: Job, settings: tuple[Any, list[str], str, str, int], again: bool
) -> tuple[str, float | None, str | None]:
    """Run a job in a process forked from a Ray worker, and return its state, score and cause.

    Args:
        work: runs a job.
        job: the job.
        settings: Hydra's global state, the trusted packages, the name of the command and its working directory, and the
            job's CPU cores.
        again: whether the job's earlier worker was lost.
    """
    # `ray.cancel` calls the handler of SIGINT unless the signal is ignored, as in what a shell starts in the background.
    # Ray blocks the signal itself; the ranks of the job would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        os.chdir(settings[3])
    except OSError as error:
        return FAILED, None, f"the nodes of a Ray cluster must share the disk of the sweep; {error}"
    import alexlab.training.loop  # noqa: F401 - once for all jobs of this worker

    if again:
        end_s = time.monotonic() + HELD_S
        while (found := sweeps.previous_attempt(job.folder)).held and time.monotonic() < end_s:
            time.sleep(STOP_POLL_S)
        if found.state is not None:
            return found.state, found.score, found.cause
        if found.resumed:
            with open_dict(job.config):
                job.config.hydra.output_subdir = None  # the first .hydra stays as it is
    with signals.install(), signals.handler(lambda signum: None):
        process = JobProcess(job, partial(_work_remotely, work, settings), Slot(0, []))
        told = False
        try:
            while not wait([process.process.sentinel], timeout=STOP_POLL_S):
                if signals.first is not None and not told and process.process.pid is not None:
                    told = True
                    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the same interrupt, repeated
                    os.kill(process.process.pid, signals.first)
        finally:
            process.process.kill()  # which has ended, unless there was a second signal
        process.collect()
    return job.state, job.score, job.cause


def _work_remotely(work: Callable[[Job], None], settings: tuple[Any, list[str], str, str, int], job: Job) -> None:
    """Run a job with the global state of the process that has submitted it."""
    from alexlab.cli.command import register

    state, trusted, command, _, cores = settings
    register()
    allowlist.trusted.extend(trusted)
    Singleton.set_state(state)
    sys.argv[:] = [command]
    os.environ[hardware.CORES] = str(cores)
    work(job)
