"""What this machine has. Imports no torch, and asks for GPUs without starting CUDA, so that a process can still be forked."""

import ctypes
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>

jobs_elsewhere = False  # while jobs are looked at that will run on other machines than this one


CORES = "ALEXLAB_CORES"  # environment variable: the logical processors of a job that is not bound to them


def num_cores() -> int:
    """Return the logical processors that this process may use; those of its job where Ray or SLURM need not bind it to them."""
    found = len(cores()) or os.cpu_count() or 1
    given = os.environ.get(CORES) or os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(found, int(given)) if given.isdigit() and int(given) else found


def cores() -> list[int]:
    """Their numbers; none where the system does not tell, as on macOS."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def die_with_parent(parent: int) -> None:
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


def cpu_has_bfloat16() -> bool:
    """Whether this machine's processors compute in bfloat16 by themselves; those that do not take many times as long."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def keep_memory() -> None:
    """Lets this process and its children keep the memory that they free, for the next step, instead of giving it back.

    A step on the CPU takes and frees hundreds of megabytes in large blocks, which glibc maps anew each time: at full width
    with 64 images these are 120,000 page faults, with this 1,000, and 1.13 x the images/s (1.08 x at half width; 2 cores of an
    AMD EPYC, 2026-11-23). What a process holds at most stays the same. Linux with glibc only; elsewhere it does nothing.
    """
    library = ctypes.CDLL(None)
    if not sys.platform.startswith("linux") or not hasattr(library, "mallopt"):
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def bind_to(chosen: list[int]) -> None:
    """Binds this process and its future children to some of them; none changes nothing."""
    if chosen:
        os.sched_setaffinity(0, chosen)


def core_sets(count: int) -> list[list[int]]:
    """The cores divided by `count`, at least one for each share."""
    all_cores = cores()
    bounds = [len(all_cores) * index // count for index in range(count + 1)]
    return [
        all_cores[bounds[index] : max(bounds[index + 1], bounds[index] + 1)] or all_cores[-1:] for index in range(count)
    ]


def describe_hardware() -> dict[str, Any]:
    """Return the CPU model, core count and memory of this machine, without initialising CUDA."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"system": platform.platform(), "cpu": model, "cores": num_cores(), "memory_gb": round(memory / 1e9, 1)}
