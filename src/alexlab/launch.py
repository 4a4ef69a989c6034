"""One process or several: starts a function of the composed config on every device of a run.

The process that composed the config stays a parent that builds no trainer: PyTorch's elastic launcher forks the ranks from
it, so that torch, torchvision and lightning are imported once (0.8 s against 30 s for two spawned ranks on 2 cores). What
follows from the fork: the parent must not start CUDA nor run a parallel operation on the CPU, so every job of a sweep, also
one of a single device, runs in a child of its own, which is also what keeps the jobs apart.
"""

import json
import logging
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alexlab import errors
from alexlab.errors import AlexlabError, ConfigError, RankError
from alexlab.machine import end_with, num_cores
from alexlab.runs import started_outside

REPORTS = "ALEXLAB_REPORTS"  # the environment variable that names the folder of the ranks' last words
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID")


def num_ranks(*, accelerator: str, devices: int | str | list[int]) -> int:
    """The number of processes that `trainer.devices` asks for.

    Raises:
        ConfigError: when there are not so many devices, or torchrun has started another number of processes.
    """
    gpus = num_gpus()
    if accelerator not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise ConfigError(f"trainer.accelerator must be one of auto, cpu, gpu, cuda, mps; got {accelerator!r}")
    if accelerator in ("gpu", "cuda") and gpus == 0:
        raise ConfigError(f"trainer.accelerator={accelerator} needs a GPU; there is none. Take trainer.accelerator=cpu")
    on_gpu = _on_gpu(accelerator, gpus)
    # Two processes always can be tried; more of them than cores only wait for each other.
    available, kind = (gpus, "GPUs") if on_gpu else (max(2, num_cores()), "processes on this machine's CPU cores")
    count = _count(devices, gpus if on_gpu else 1)
    if count > available:
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
    return devices if isinstance(devices, list) else _count(devices, gpus)


def _on_gpu(accelerator: str, gpus: int) -> bool:
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)


def _count(devices: int | str | list[int], everything: int) -> int:
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
    """How long ranks wait, the keys of the `elastic` node.

    Args:
        timeout_s: how long a rank waits for the others before the run ends.
        shutdown_s: what a rank gets to end by itself when another one was lost.
    """

    timeout_s: float
    shutdown_s: int


def launch(task: Callable[[], Any], *, num_ranks: int, isolated: bool, limits: Limits) -> Any:
    """Runs `task` on every rank and returns what rank 0 returned.

    Args:
        task: called without arguments in each process.
        num_ranks: processes.
        isolated: use a child also for one rank, as each job of a sweep must.
        limits: how long ranks wait.

    Raises:
        AlexlabError: the one that a rank raised, or RankError, which names the rank that was lost and the cause.
    """
    if started_outside() or (num_ranks == 1 and not isolated):
        return task()
    folder = tempfile.mkdtemp(prefix="alexlab_")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        rdzv_configs={"timeout": limits.timeout_s},
        max_restarts=0,
        start_method="fork",
        local_addr="127.0.0.1",
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )
    if hasattr(config, "shutdown_timeout"):  # not yet in torch 2.11, which waits 30 s
        config.shutdown_timeout = limits.shutdown_s
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it prints a page for each lost rank
    try:
        return elastic_launch(config, _run_rank)(task, folder, os.getpid())[0]
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise SystemExit(128 + error.sigval) from error
    except ChildFailedError as error:
        raise _cause(error.failures, Path(folder)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(error: BaseException) -> None:
    """Leaves word of what ended this rank, at once: when it is gone, the others fail for its absence and may be heard first."""
    folder = os.environ.get(REPORTS)
    if folder is None:
        return
    path = Path(folder) / f"rank{os.environ.get('RANK', '0')}.json"
    if not path.exists():  # the first error is the cause
        path.write_text(json.dumps({"time_s": time.time(), "type": type(error).__name__, "text": str(error)}))


class Reports(Callback):
    """Reports an error as soon as the Trainer meets it, before it takes the process group down."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        report(exception)


def _run_rank(task: Callable[[], Any], reports: str, parent: int) -> Any:
    """The body of a forked process."""
    end_with(parent)
    os.environ[REPORTS] = reports
    local_ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    # Without this each rank would compute on every core, and two ranks on two cores would be slower than one.
    torch.set_num_threads(max(1, num_cores() // local_ranks))
    try:
        if local_ranks > 1:
            return task()
        for name in RANK_VARIABLES:  # a run on one device is no distributed run
            os.environ.pop(name, None)
        return task()
    except Exception as error:
        report(error)
        raise


def _cause(failures: dict[int, ProcessFailure], reports: Path) -> AlexlabError:
    """What ended the run: our own error if a rank raised one, else the signal that killed a rank, else the first error."""
    found = {int(path.stem[4:]): json.loads(path.read_text()) for path in reports.glob("rank*.json")}
    first = sorted(found, key=lambda rank: found[rank]["time_s"])
    for rank in first:
        known = getattr(errors, found[rank]["type"], None)
        if isinstance(known, type) and issubclass(known, AlexlabError):
            return known(found[rank]["text"])
    for rank, failure in failures.items():
        # The launcher itself ends the other ranks by SIGTERM.
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            return RankError(f"rank {rank} (process {failure.pid}) was ended by {name}; the other ranks were stopped")
    if first:
        rank = first[0]
        return RankError(
            f"rank {rank} raised {found[rank]['type']}: {found[rank]['text']}; the other ranks were stopped"
        )
    rank, failure = min(failures.items(), key=lambda item: item[1].timestamp)
    return RankError(f"rank {rank} (process {failure.pid}) ended with exit code {failure.exitcode} and left no word")
