"""CPU cores, memory allocator and process lifetime of this machine."""

import ctypes
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>
CORES = "ALEXLAB_CORES"  # environment variable: number of logical cores of a job that is not bound to them


def num_cores() -> int:
    """Return the number of logical cores for this process: those it may run on, and at most those of its Ray or SLURM job.

    Ray never binds a job to its cores, and SLURM need not.
    """
    found = len(cores()) or os.cpu_count() or 1
    given = os.environ.get(CORES) or os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(found, int(given)) if given.isdigit() and int(given) else found


def cores() -> list[int]:
    """Return the logical cores that this process may run on; empty on systems without CPU affinity, such as macOS."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def bind_to(chosen: list[int]) -> None:
    """Bind this process and its future children to these cores; an empty list changes nothing."""
    if chosen:
        os.sched_setaffinity(0, chosen)


def core_sets(num_jobs: int) -> list[list[int]]:
    """Divide the cores among jobs; each job gets at least one."""
    all_cores = cores()
    bounds = [len(all_cores) * index // num_jobs for index in range(num_jobs + 1)]
    return [
        all_cores[bounds[index] : max(bounds[index + 1], bounds[index] + 1)] or all_cores[-1:]
        for index in range(num_jobs)
    ]


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, so that no orphan keeps computing. Linux only.

    Args:
        parent: pid of the parent, which may already have died.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def cpu_has_bfloat16() -> bool:
    """Return whether the CPU has bfloat16 instructions; emulation is many times slower."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def keep_memory() -> None:
    """Let this process and its children keep freed memory for the next step instead of returning it to the kernel.

    A step on the CPU allocates and frees hundreds of megabytes in large blocks, which glibc maps again each time: 120,000 page
    faults at full width with 64 images, 1,000 with this setting, and 1.13 x the images/s (1.08 x at half width; 2 cores of an
    AMD EPYC, 2026-11-23). Peak memory stays the same. Linux with glibc only.
    """
    library = ctypes.CDLL(None)
    if not sys.platform.startswith("linux") or not hasattr(library, "mallopt"):
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def describe_hardware() -> dict[str, Any]:
    """Return the CPU model, core count and memory of this machine, without initializing CUDA."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"system": platform.platform(), "cpu": model, "cores": num_cores(), "memory_gb": round(memory / 1e9, 1)}


def return_memory() -> None:
    """Return the freed memory of this process to the kernel, so that processes forked from it do not share it. glibc only."""
    library = ctypes.CDLL(None)
    if sys.platform.startswith("linux") and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
