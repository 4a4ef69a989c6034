"""Suite `memory`: peak memory of a training and of each of its DataLoader workers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from alexlab.benchmark.baselines import torchvision_reference
from alexlab.benchmark.context import BenchmarkContext
from alexlab.benchmark.epochs import ours
from alexlab.benchmark.interleave import Candidate, Figures, Turn
from alexlab.benchmark.roofline import per_round
from alexlab.benchmark.table import Row
from alexlab.benchmark.workload import Workload

BASELINE = "torchvision's reference"
LABELS = {"all": "all processes", "main": "the process that trains", "worker": "a DataLoader worker"}  # by figure


def suite(context: BenchmarkContext) -> list[Row]:
    """Compare the peaks of an epoch with its validation and checkpoint.

    Only the private memory of a process counts, not the pages of files and of libraries that it shares with others: the pack is a
    mapped file, whose pages the system takes back when it needs them.
    """
    loops: dict[str, tuple[BenchmarkContext, Callable[[Workload, Turn], None]]] = {
        "JPEG": (context.on_files(), ours),
        "packed": (context.on_packed(), ours),
        BASELINE: (context.on_files(), torchvision_reference),
    }
    candidates = [
        Candidate(f"memory {name}", partial(train, source.workload(f"memory {name}")))
        for name, (source, train) in loops.items()
    ]
    results = context.interleave(candidates, "memory: one epoch per turn", sample=sample_memory)
    rows = []
    for name in ("JPEG", "packed"):
        for figure, what in LABELS.items():
            values, baseline_values = (per_round(results[f"memory {each}"], figure) for each in (name, BASELINE))
            if not min(values):  # no DataLoader worker
                continue
            label = f"{what}: {context.model}, {name}"
            rows.append(Row("memory", label, values, "MB", BASELINE, baseline_values))
    return rows


def sample_memory(pid: int) -> Figures:
    """Return the private memory of a process, of its largest child, and of it and all children, in MB."""
    main = private_mb(pid)
    workers = [private_mb(child) for child in children(pid)]
    return {"main": main, "worker": max(workers, default=0.0), "all": main + sum(workers)}


def private_mb(pid: int) -> float:
    """Return the private anonymous memory of a process, in MB; 0 if it has exited."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return (sizes["Pss_Anon"] + sizes["Pss_Shmem"]) * 1024 / 1e6


def children(pid: int) -> list[int]:
    """Return the running child processes of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:  # the thread has ended
            continue
    return found
