"""What this machine has. Imports no torch, and asks for GPUs without starting CUDA, so that a process can still be forked."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def num_cores() -> int:
    """Logical processors that this process may use."""
    return len(cores()) or os.cpu_count() or 1


def cores() -> list[int]:
    """Their numbers; none where the system does not tell, as on macOS."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def end_with(parent: int) -> None:
    """Lets the system kill this process when its parent ends, however it ends: no process computes on for nobody.

    Linux only; elsewhere it does nothing.

    Args:
        parent: the parent's process number; it may have ended already.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def bind_to(chosen: list[int]) -> None:
    """Binds this process and its future children to some of them; none changes nothing."""
    if chosen:
        os.sched_setaffinity(0, chosen)


def shares(count: int) -> list[list[int]]:
    """The cores divided by `count`, at least one for each share."""
    all_cores = cores()
    bounds = [len(all_cores) * index // count for index in range(count + 1)]
    return [
        all_cores[bounds[index] : max(bounds[index + 1], bounds[index] + 1)] or all_cores[-1:] for index in range(count)
    ]
