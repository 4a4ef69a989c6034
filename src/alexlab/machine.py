"""What this machine has. Imports no torch, and asks for GPUs without starting CUDA, so that a process can still be forked."""

import os


def num_cores() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
