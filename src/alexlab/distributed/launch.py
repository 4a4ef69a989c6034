"""Launcher that runs a function on every device of a run: `launch` forks `run_rank`, which calls the function.

The process that composed the config stays a parent that builds no trainer, so that torch, torchvision and lightning are imported
once (0.8 s for two forked ranks against 30 s for two spawned ones, on 2 cores). The parent must therefore neither initialize
CUDA nor run a parallel CPU operation, so every job of a sweep runs in a child, even on one device; this also isolates the jobs
from each other.
"""

import logging
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from alexlab.distributed import error_files, hardware, ranks
from alexlab.distributed.environment import LOOPBACK
from alexlab.distributed.signals import Interrupted, signals
from alexlab.distributed.socket_paths import ensure_short_socket_paths
from alexlab.distributed.supervisor import INTERRUPTED, RETURNED, supervise
from alexlab.errors import ConfigError, RankError, exit_code_of
from alexlab.records.disk_errors import check_free_space

FORK = multiprocessing.get_context("fork")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Time limits and restarts of the ranks: the keys of the `elastic` node.

    Args:
        timeout_s: how long a rank waits for the others before the run fails.
        shutdown_s: how long a rank may take to exit after another one failed.
        max_restarts: how often failed ranks are restarted from the last checkpoint; under torchrun its own option applies.
    """

    timeout_s: float
    shutdown_s: float
    max_restarts: int = 0

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ConfigError(f"elastic.timeout_s must be positive; got {self.timeout_s}")
        for name in ("shutdown_s", "max_restarts"):
            if getattr(self, name) < 0:
                raise ConfigError(f"elastic.{name} must be at least 0; got {getattr(self, name)}")


def launch(
    task: Callable[[], Any],
    *,
    num_ranks: int,
    isolated: bool,
    limits: Limits,
    on_restart: Callable[[list[str]], None] = lambda causes: None,
) -> Any:
    """Run `task` on every rank and return what rank 0 returned.

    Args:
        task: called without arguments in each process.
        num_ranks: number of processes on this machine.
        isolated: fork even for one rank, as each job of a sweep must.
        limits: time limits and restarts.
        on_restart: called before each restart with the causes of all restarts.

    Raises:
        AlexlabError: the error of a rank, or RankError, which names the failed rank and the cause.
        Interrupted: if a signal stopped the ranks.
    """
    if ranks.is_distributed():
        result = task()
        if torch.distributed.is_initialized():  # otherwise its threads may outlive what they use, and abort the process
            torch.distributed.destroy_process_group()
        return result
    if num_ranks == 1 and not isolated and not limits.max_restarts:
        return task()
    ensure_short_socket_paths()
    causes: list[str] = []
    while True:
        with tempfile.TemporaryDirectory(prefix="alexlab_") as error_dir:
            check_free_space(Path(error_dir))
            store, port = _serve_store()
            variables = _variables(num_ranks, port=port, attempt=len(causes), error_dir=error_dir)
            receiver, sender = FORK.Pipe(duplex=False)
            processes = [FORK.Process(target=run_rank, args=(task, each, sender, os.getpid())) for each in variables]
            try:
                with signals.handler(lambda signum: None):  # `supervise` forwards a signal that arrives meanwhile
                    for process in processes:
                        process.start()
                    sender.close()
                    return supervise(processes, receiver, error_dir=Path(error_dir), shutdown_s=limits.shutdown_s)
            except RankError as error:
                if len(causes) >= limits.max_restarts:
                    raise
                causes.append(str(error))
                log.warning("restart %d of %d, from the last checkpoint: %s", len(causes), limits.max_restarts, error)
            finally:
                # Now, and not when a traceback that refers to it is collected: in a process forked later its thread is
                # missing, and joining it there aborts that process.
                del store
        on_restart(causes)


def _serve_store() -> tuple[TCPStore, int]:
    """Return a store and its port, served by the parent so that it outlives each rank, on the loopback address only."""
    listener = socket.create_server((LOOPBACK, 0))
    port = int(listener.getsockname()[1])
    store = TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, port


def _variables(num_ranks: int, *, port: int, attempt: int, error_dir: str) -> list[dict[str, str]]:
    """Return the environment variables of each rank."""
    return [
        ranks.rank_variables(rank=rank, local_size=num_ranks, num_nodes=1, address=LOOPBACK, port=port, attempt=attempt)
        | {error_files.ERROR_FILE: f"{error_dir}/{rank}.json"}
        for rank in range(num_ranks)
    ]


def run_rank(task: Callable[[], Any], variables: dict[str, str], results: Any, parent: int) -> None:
    """Run the task on one rank, in a forked process, and send the result of rank 0 to the parent.

    Args:
        task: the function to run.
        variables: environment variables of the rank.
        results: connection to the parent.
        parent: pid of the parent.
    """
    hardware.die_with_parent(parent)
    os.environ.update(variables)
    local_ranks = int(variables["LOCAL_WORLD_SIZE"])
    # Otherwise each rank would compute on every core, and two ranks on two cores would be slower than one.
    torch.set_num_threads(max(1, hardware.num_cores() // local_ranks))
    if sys.platform.startswith("linux"):  # otherwise gloo resolves the host name, often to 127.0.1.1
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if local_ranks == 1:  # a run on one device is not a distributed run
        ranks.clear_environment()
    try:
        signals.reset_after_fork()
        result = (RETURNED, task())
    except Interrupted as error:
        if not error.agreed:
            error_files.write_error_file(error)
            sys.exit(error.exit_code)
        result = (INTERRUPTED, error.signum)  # on all ranks after the same step: not a failure
    except Exception as error:
        error_files.write_error_file(error)
        sys.exit(exit_code_of(error))
    if variables["RANK"] == "0":
        results.send_bytes(pickle.dumps(result))  # by value: `send` would leave tensors in this process's shared memory
