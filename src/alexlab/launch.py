"""One process or several: starts a function of the composed config on every device of a run.

The process that composed the config stays a parent that builds no trainer: PyTorch's elastic launcher forks the ranks from
it, so that torch, torchvision and lightning are imported once (0.8 s against 30 s for two spawned ranks on 2 cores). What
follows from the fork: the parent must not start CUDA nor run a parallel operation on the CPU, so every job of a sweep, also
one of a single device, runs in a child of its own, which is also what keeps the jobs apart.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alexlab import disk, lost, machine, members, rendezvous, rounds
from alexlab.errors import ConfigError
from alexlab.runs import started_outside
from alexlab.signals import Stopped, signals

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID")


def num_ranks(*, accelerator: str, devices: int | str | list[int]) -> int:
    """The number of processes that `trainer.devices` asks for.

    Raises:
        ConfigError: when there are not so many devices, or torchrun has started another number of processes.
    """
    gpus = num_gpus()
    if accelerator not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise ConfigError(f"trainer.accelerator must be one of auto, cpu, gpu, cuda, mps; got {accelerator!r}")
    elsewhere = machine.jobs_elsewhere  # on another machine there are other devices
    if accelerator in ("gpu", "cuda") and gpus == 0 and not elsewhere:
        raise ConfigError(f"trainer.accelerator={accelerator} needs a GPU; there is none. Take trainer.accelerator=cpu")
    if accelerator == "mps" and not torch.backends.mps.is_available() and not elsewhere:
        raise ConfigError(
            "trainer.accelerator=mps needs a Mac with an Apple GPU; there is none. Take trainer.accelerator=cpu"
        )
    if accelerator == "mps" and count_devices(devices, 1) > 1:
        raise ConfigError(f"trainer.devices must be 1 with trainer.accelerator=mps; got {devices}")
    on_gpu = _on_gpu(accelerator, gpus)
    # Two processes always can be tried; more of them than cores only wait for each other.
    available, kind = (
        (gpus, "GPUs") if on_gpu else (max(2, machine.num_cores()), "processes on this machine's CPU cores")
    )
    count = count_devices(devices, gpus if on_gpu else 1)
    if count > available and not elsewhere:
        raise ConfigError(f"trainer.devices must be at most {available}, the {kind}; got {devices}")
    if started_outside() and count != int(os.environ["LOCAL_WORLD_SIZE"]):
        raise ConfigError(
            f"trainer.devices must be the {os.environ['LOCAL_WORLD_SIZE']} processes that torchrun has started; got {count}"
        )
    return count


def num_gpus() -> int:
    """GPUs that this process may use, asked of the driver, not of CUDA: a process that has started CUDA cannot be forked."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.device_count()


def wanted_gpus(*, accelerator: str, devices: int | str | list[int]) -> int | list[int]:
    """How many GPUs a run needs, or which ones where `devices` names them; 0 of a run on the CPU."""
    gpus = num_gpus()
    if not _on_gpu(accelerator, gpus):
        return 0
    return devices if isinstance(devices, list) else count_devices(devices, gpus)


def _on_gpu(accelerator: str, gpus: int) -> bool:
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)


def count_devices(devices: int | str | list[int], everything: int) -> int:
    """Return the number of devices that `trainer.devices` asks for, where `everything` are there.

    Raises:
        ConfigError: unless it is at least 1.
    """
    if isinstance(devices, list):
        count = len(devices)
    elif devices in ("auto", -1, "-1"):
        count = everything
    elif isinstance(devices, int) or (isinstance(devices, str) and devices.isdigit()):
        count = int(devices)
    else:
        raise ConfigError(f"trainer.devices must be a number, a list of GPU numbers or auto; got {devices!r}")
    if count < 1:
        raise ConfigError(f"trainer.devices must be at least 1; got {devices!r}")
    return count


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long ranks and nodes wait, the keys of the `elastic` node.

    Args:
        timeout_s: how long a rank waits for the others before the run ends, and a node for enough of them.
        shutdown_s: what a rank gets to end by itself when another one was lost.
        max_restarts: how often lost ranks are started again, from the last checkpoint.
        rendezvous: HOST:PORT, where the nodes meet; HOST is the first of them. None: one node.
        min_nodes: with how many nodes a run of `trainer.num_nodes` goes on; None: with all.
        silence_s: after how long a node that says nothing is lost.
        join_s: how long the first nodes wait for one more, when there are enough.
    """

    timeout_s: float
    shutdown_s: int
    max_restarts: int = 0
    rendezvous: str | None = None
    min_nodes: int | None = None
    silence_s: float = 15.0
    join_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("timeout_s", "silence_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"elastic.{name} must be positive; got {getattr(self, name)}")
        for name in ("shutdown_s", "max_restarts", "join_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"elastic.{name} must be at least 0; got {getattr(self, name)}")
        if self.min_nodes is not None and self.min_nodes < 1:
            raise ConfigError(f"elastic.min_nodes must be null or at least 1; got {self.min_nodes}")


def launch(task: Callable[[], Any], *, num_ranks: int, isolated: bool, limits: Limits) -> Any:
    """Runs `task` on every rank and returns what rank 0 returned.

    Args:
        task: called without arguments in each process.
        num_ranks: processes.
        isolated: use a child also for one rank, as each job of a sweep must.
        limits: how long ranks wait.

    Raises:
        AlexlabError: the one that a rank raised, or RankError, which names the rank that was lost and the cause.
        Stopped: when a signal has ended the ranks.
    """
    group = members.here if members.here.num_nodes > 1 else members.Alone(limits.max_restarts)
    if started_outside():
        result = task()
        if torch.distributed.is_initialized():  # else its threads may outlive what they use, and abort the process
            torch.distributed.destroy_process_group()
        return result
    if group.num_nodes == num_ranks == 1 and not isolated and not limits.max_restarts:
        return task()
    disk.short_socket_paths()
    folder = Path(tempfile.mkdtemp(prefix="alexlab_"))
    report = None
    try:
        disk.check_room(folder)
        with signals.answered_by(_hand_on), lost.Witness(folder, limits.shutdown_s):
            while True:
                place = group.next(report, partial(lost.judge, folder))
                result = _round(task, folder, place, group, num_ranks=num_ranks, timeout_s=limits.timeout_s)
                if not isinstance(result, rounds.Report):
                    return result
                report = result
                if report.heard is not None:
                    raise Stopped(report.heard, agreed=report.stopped is not None)
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _round(
    task: Callable[[], Any],
    folder: Path,
    place: rounds.Place,
    group: rounds.Group,
    *,
    num_ranks: int,
    timeout_s: float,
) -> Any:
    """Starts the ranks of this node once; gives what the first of them returned, or how they have ended instead."""
    told = False

    def over() -> bool:
        nonlocal told
        why = group.over()
        if why == rounds.JOINED and not told:  # the ranks agree on a step, save and stop, on all nodes
            told = True
            _hand_on(signal.SIGTERM)
        return why == rounds.LOST

    config = LaunchConfig(
        min_nodes=place.count,
        max_nodes=place.count,
        nproc_per_node=num_ranks,
        run_id=f"round_{place.attempt}",
        rdzv_backend=rendezvous.BACKEND,
        rdzv_endpoint=place.address,
        rdzv_configs={"place": place, "over": over, "timeout": timeout_s},
        max_restarts=0,
        start_method="fork",
        signals_to_handle="SIGQUIT",  # of the others, `_hand_on` takes care
        local_addr=place.address if place.number == 0 else None,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    try:
        results = elastic_launch(config, _run_rank)(task, folder, os.getpid(), place, group)
        result = results[min(results)]
        if isinstance(result, Stopped):
            return rounds.Report(place.attempt, stopped=result.signum, heard=signals.first)
        return result
    except (ChildFailedError, rendezvous.RoundOver):
        return rounds.Report(place.attempt, words=lost.words(folder, place.attempt), heard=signals.first)


def _hand_on(signum: int) -> None:
    """Gives a signal to the ranks, which end by themselves; without any there is nothing to wait for."""
    ranks = multiprocessing.active_children()
    if not ranks:
        raise Stopped(signum)
    for process in ranks:
        if process.pid is not None:
            os.kill(process.pid, signum)


def _run_rank(task: Callable[[], Any], words: Path, parent: int, place: rounds.Place, group: rounds.Group) -> Any:
    """The body of a forked process."""
    machine.end_with(parent)
    group.forked()
    lost.begin(words, place.attempt, group.causes)
    if sys.platform.startswith("linux"):  # else gloo listens where the name of the machine leads
        interface = members.interface(group.address)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        if group.num_nodes > 1:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    local_ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    # Without this each rank would compute on every core, and two ranks on two cores would be slower than one.
    torch.set_num_threads(max(1, machine.num_cores() // local_ranks))
    if local_ranks == place.count == 1:  # a run on one device is no distributed run
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)
    try:
        signals.afresh()
        return task()
    except Stopped as error:
        if error.agreed:
            return error  # all ranks do so: no failure
        lost.report(error)
        sys.exit(error.exit_code)
    except Exception as error:
        lost.report(error)
        raise
