"""One process or several: runs a function of the composed config on every device of a run.

The process that composed the config stays a parent that builds no trainer and forks the ranks, so that torch, torchvision and
lightning are imported once (0.8 s against 30 s for two spawned ranks on 2 cores). Hence the parent must not start CUDA nor run
a parallel operation on the CPU, so every job of a sweep, also one of a single device, runs in a child of its own, which is also
what keeps the jobs apart.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from alexlab.distributed import error_files, hardware, ranks
from alexlab.distributed.environment import LOOPBACK
from alexlab.distributed.signals import Interrupted, signals
from alexlab.errors import AlexlabError, ConfigError, RankError
from alexlab.runs import atomic

FORK = multiprocessing.get_context("fork")
POLL_S, GRACE_S = 0.1, 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Time limits and restarts of the ranks: the keys of the `elastic` node.

    Args:
        timeout_s: how long a rank waits for the others before the run ends.
        shutdown_s: how long a rank may take to end when another one was lost.
        max_restarts: how often lost ranks are started again, from the last checkpoint; under torchrun that is its own option.
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
        isolated: use a child also for one rank, as each job of a sweep must.
        limits: how long ranks wait.
        on_restart: called before each restart with the causes of all of them.

    Raises:
        AlexlabError: the one that a rank raised, or RankError, which names the lost rank and the cause.
        Interrupted: if a signal has ended the ranks.
    """
    if ranks.is_distributed():
        result = task()
        if torch.distributed.is_initialized():  # else its threads may outlive what they use, and abort the process
            torch.distributed.destroy_process_group()
        return result
    if num_ranks == 1 and not isolated and not limits.max_restarts:
        return task()
    atomic.short_socket_paths()
    causes: list[str] = []
    while True:
        with tempfile.TemporaryDirectory(prefix="alexlab_") as folder:
            atomic.check_room(Path(folder))
            try:
                return _Attempt(task, num_ranks, len(causes), Path(folder), limits.shutdown_s).run()
            except RankError as error:
                if len(causes) >= limits.max_restarts:
                    raise
                causes.append(str(error))
                log.warning("restart %d of %d, from the last checkpoint: %s", len(causes), limits.max_restarts, error)
        on_restart(causes)


class _Attempt:
    """One start of all ranks of this machine.

    A loop of our own rather than PyTorch's elastic agent, which reports one failed rank only, not always the first, and waits
    half a minute for one that is suspended.

    Args:
        task, num_ranks: as for `launch`.
        number: of the attempt, from 0.
        folder: an empty one, for the error files.
        shutdown_s: how long a rank may take to end when another one was lost.
    """

    def __init__(self, task: Callable[[], Any], num_ranks: int, number: int, folder: Path, shutdown_s: float) -> None:
        self.folder, self.shutdown_s = folder, shutdown_s
        listener = socket.create_server((LOOPBACK, 0))
        port = int(listener.getsockname()[1])
        # Served by the parent, so that it outlives each rank, and only on the loopback address.
        self.store = TCPStore(
            LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self.results, sender = FORK.Pipe(duplex=False)
        self.processes = []
        for rank in range(num_ranks):
            variables = ranks.rank_variables(
                rank=rank, local_size=num_ranks, num_nodes=1, address=LOOPBACK, port=port, attempt=number
            )
            variables[error_files.ERROR_FILE] = str(folder / f"{rank}.json")
            self.processes.append(FORK.Process(target=_run_rank, args=(task, variables, sender, os.getpid())))
        with signals.handler(lambda signum: None):  # one that comes now is passed on below
            for process in self.processes:
                process.start()
        sender.close()

    def run(self) -> Any:
        """Return what rank 0 returned, when all ranks have ended.

        Raises:
            AlexlabError, Interrupted: what has ended them.
        """
        result: tuple[str, Any] | None = None
        try:
            with signals.handler(self._pass_on):
                while any(map(_alive, self.processes)) and not self._failed():
                    # With a time limit: the sentinel of a rank stays open while a loader process of it lives.
                    sentinels = [process.sentinel for process in filter(_alive, self.processes)]
                    connection.wait([*sentinels, *([self.results] if result is None else [])], POLL_S)
                    if result is None and self.results.poll():
                        with suppress(EOFError):  # all ranks are ending without one
                            result = pickle.loads(self.results.recv_bytes())
        finally:
            failed = self._failed()
            exits, suspended = self._end() if failed or any(map(_alive, self.processes)) else ({}, {})
            # Now, and not when a traceback that refers to it is collected: in a process forked later its thread is missing,
            # and joining it there aborts that process.
            del self.store
        if failed or result is None:
            raise error_files.diagnose(error_files.read_error_files(self.folder), exits, suspended)
        kind, value = result
        if kind == "stopped":
            raise Interrupted(signals.first or value, agreed=True)
        return value

    def _failed(self) -> bool:
        return any(process.exitcode not in (None, 0) for process in self.processes)

    def _pass_on(self, signum: int) -> None:
        for process in filter(_alive, self.processes):
            os.kill(process.pid or 0, signum)

    def _end(self) -> tuple[dict[int, tuple[int, int]], dict[int, int]]:
        """Terminate the ranks that are left; return how the others had ended, and which of them were suspended."""
        time.sleep(GRACE_S)  # the kernel closes a killed rank's connections a moment before its exit code is there
        exits = {
            rank: (process.pid or 0, process.exitcode)
            for rank, process in enumerate(self.processes)
            if process.exitcode is not None
        }
        suspended = {
            rank: process.pid or 0 for rank, process in enumerate(self.processes) if _is_suspended(process.pid or 0)
        }
        self._pass_on(signal.SIGTERM)
        deadline_s = time.monotonic() + self.shutdown_s
        for process in self.processes:
            process.join(max(0.0, deadline_s - time.monotonic()))
            process.kill()
            process.join()
        return exits, suspended


def _alive(process: ForkProcess) -> bool:
    return process.pid is not None and process.exitcode is None


def _is_suspended(pid: int) -> bool:
    """Return whether a process is stopped by SIGSTOP, Ctrl-Z or a debugger; Linux only."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def _run_rank(task: Callable[[], Any], variables: dict[str, str], results: Any, parent: int) -> None:
    """Run the task in a forked process."""
    hardware.die_with_parent(parent)
    os.environ.update(variables)
    local_ranks = int(variables["LOCAL_WORLD_SIZE"])
    # Without this each rank would compute on every core, and two ranks on two cores would be slower than one.
    torch.set_num_threads(max(1, hardware.num_cores() // local_ranks))
    if sys.platform.startswith("linux"):  # else gloo resolves the host name, often to 127.0.1.1
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    is_first = variables["RANK"] == "0"
    if local_ranks == 1:  # a run on one device is no distributed run
        ranks.clear_environment()
    try:
        signals.reset_after_fork()
        result = ("result", task())
    except Interrupted as error:
        if not error.agreed:
            error_files.write_error_file(error)
            sys.exit(error.exit_code)
        result = ("stopped", error.signum)  # by all ranks after the same step: no failure
    except Exception as error:
        error_files.write_error_file(error)
        sys.exit(error.exit_code if isinstance(error, AlexlabError) else AlexlabError.exit_code)
    if is_first:
        results.send_bytes(pickle.dumps(result))  # by value: `send` would leave tensors in this process's shared memory
