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
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alexlab import errors
from alexlab.errors import AlexlabError, ConfigError, RankError
from alexlab.machine import num_cores
from alexlab.runs import started_outside

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID")


def num_ranks(*, accelerator: str, devices: int | str | list[int]) -> int:
    """The number of processes that `trainer.devices` asks for.

    Raises:
        ConfigError: when there are not so many devices, or torchrun has started another number of processes.
    """
    # Asked of the driver, not of CUDA: a process that has started CUDA cannot be forked.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    gpus = torch.cuda.device_count()
    if accelerator not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise ConfigError(f"trainer.accelerator must be one of auto, cpu, gpu, cuda, mps; got {accelerator!r}")
    if accelerator in ("gpu", "cuda") and gpus == 0:
        raise ConfigError(f"trainer.accelerator={accelerator} needs a GPU; there is none. Take trainer.accelerator=cpu")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
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


def launch(task: Callable[[], Any], *, num_ranks: int, isolated: bool, timeout_s: float, shutdown_s: int) -> Any:
    """Runs `task` on every rank and returns what rank 0 returned.

    Args:
        task: called without arguments in each process.
        num_ranks: processes.
        isolated: use a child also for one rank, as each job of a sweep must.
        timeout_s: how long a rank waits for the others before the run ends.
        shutdown_s: what a rank gets to end by itself when another one was lost.

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
        rdzv_configs={"timeout": timeout_s},
        max_restarts=0,
        start_method="fork",
        local_addr="127.0.0.1",
        shutdown_timeout=shutdown_s,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it prints a page for each lost rank
    try:
        return elastic_launch(config, _run_rank)(task)[0]
    except ChildFailedError as error:
        raise _cause(error.failures) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_rank(task: Callable[[], Any]) -> Any:
    """The body of a forked process."""
    local_ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    # Without this each rank would compute on every core, and two ranks on two cores would be slower than one.
    torch.set_num_threads(max(1, num_cores() // local_ranks))
    if local_ranks == 1:
        for name in RANK_VARIABLES:  # a run on one device is no distributed run
            os.environ.pop(name, None)
    return task()


def _cause(failures: dict[int, ProcessFailure]) -> AlexlabError:
    """The error that ended the first rank: what it raised, or the signal that killed it."""
    killed = {
        rank: failure for rank, failure in failures.items() if failure.exitcode in (-signal.SIGKILL, -signal.SIGSEGV)
    }
    rank, failure = min((killed or failures).items(), key=lambda item: (item[1].timestamp, item[0]))
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return RankError(f"rank {rank} (process {failure.pid}) was ended by {name}; the other ranks were stopped")
    raised = _raised(failure)
    name, _, text = raised.partition(": ")
    known = getattr(errors, name, None)
    if isinstance(known, type) and issubclass(known, AlexlabError):
        return known(text)
    return RankError(f"rank {rank} (process {failure.pid}) ended with exit code {failure.exitcode}: {raised}")


def _raised(failure: ProcessFailure) -> str:
    """The exception that a rank recorded, as `Type: text`."""
    path = Path(failure.error_file)
    if not path.is_file():
        return "it left no error message"
    message = json.loads(path.read_text())["message"]
    return str(message["message"] if isinstance(message, dict) else message)
