"""Supervision of forked ranks by their parent: wait for all of them, or terminate the rest and diagnose the failure.

A loop of our own rather than PyTorch's elastic agent, which reports one failed rank only, not always the first, and waits half a
minute for a suspended one.
"""

import os
import pickle
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from alexlab.distributed.error_files import diagnose, read_error_files
from alexlab.distributed.signals import Interrupted, signals

RETURNED, INTERRUPTED = "returned", "interrupted"  # results of rank 0: (RETURNED, value) or (INTERRUPTED, signal)
POLL_S, GRACE_S = 0.1, 0.1


def supervise(processes: Sequence[ForkProcess], results: Connection, *, error_dir: Path, shutdown_s: float) -> Any:
    """Forward signals to the ranks, wait for all of them and return what rank 0 returned.

    Args:
        processes: the ranks, started.
        results: connection that receives the pickled result of rank 0.
        error_dir: folder of the error files of the ranks.
        shutdown_s: how long a rank may take to exit after another one failed.

    Raises:
        AlexlabError, Interrupted: the cause of the failure.
    """
    result: tuple[str, Any] | None = None
    try:
        with signals.handler(partial(_forward, processes)):
            while any(map(_is_alive, processes)) and not _any_failed(processes):
                # With a timeout: the sentinel of a rank stays open as long as one of its DataLoader workers lives.
                sentinels = [process.sentinel for process in filter(_is_alive, processes)]
                connection.wait([*sentinels, *([results] if result is None else [])], POLL_S)
                result = result or _received(results)
            result = result or _received(results)  # may have been sent after the last poll
    finally:
        failed = _any_failed(processes)
        exits, suspended = _terminate(processes, shutdown_s) if failed or any(map(_is_alive, processes)) else ({}, {})
    if failed or result is None:
        raise diagnose(read_error_files(error_dir), exits, suspended)
    kind, value = result
    if kind == INTERRUPTED:
        raise Interrupted(signals.first or value, agreed=True)
    return value


def _received(results: Connection) -> tuple[str, Any] | None:
    """Return the result of rank 0, or None if it has not arrived."""
    if results.poll():
        with suppress(EOFError):  # all ranks are exiting without a result
            found: tuple[str, Any] = pickle.loads(results.recv_bytes())
            return found
    return None


def _terminate(
    processes: Sequence[ForkProcess], shutdown_s: float
) -> tuple[dict[int, tuple[int, int]], dict[int, int]]:
    """Terminate the remaining ranks; return pid and exit code of those that had exited, and pids of the suspended ones."""
    time.sleep(GRACE_S)  # the kernel closes a killed rank's connections a moment before its exit code is available
    exits = {
        rank: (process.pid or 0, process.exitcode)
        for rank, process in enumerate(processes)
        if process.exitcode is not None
    }
    suspended = {rank: process.pid or 0 for rank, process in enumerate(processes) if _is_suspended(process.pid or 0)}
    _forward(processes, signal.SIGTERM)
    deadline_s = time.monotonic() + shutdown_s
    for process in processes:
        process.join(max(0.0, deadline_s - time.monotonic()))
        process.kill()
        process.join()
    return exits, suspended


def _forward(processes: Sequence[ForkProcess], signum: int) -> None:
    for process in filter(_is_alive, processes):
        os.kill(process.pid or 0, signum)


def _any_failed(processes: Sequence[ForkProcess]) -> bool:
    return any(process.exitcode not in (None, 0) for process in processes)


def _is_alive(process: ForkProcess) -> bool:
    return process.pid is not None and process.exitcode is None


def _is_suspended(pid: int) -> bool:
    """Return whether a process is stopped by SIGSTOP, Ctrl-Z or a debugger; Linux only."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False
