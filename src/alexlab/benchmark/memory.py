"""The largest memory of a training and of each of its loader processes."""

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from alexlab.benchmark.baselines import Job, reference
from alexlab.benchmark.context import Measuring
from alexlab.benchmark.epochs import job_of, ours
from alexlab.benchmark.interleave import Contender, Figures, Turns
from alexlab.benchmark.roofline import rates
from alexlab.benchmark.table import Row

EVERY_S = 0.05


def suite(measuring: Measuring) -> list[Row]:
    """Peaks of an epoch with its validation and checkpoint, beside the usual loop's.

    Of each process its own memory is counted, not the pages of files and of the libraries that it shares with others: the
    pack is a file that is mapped, whose pages the system takes back when it needs them.
    """
    bodies: dict[str, tuple[Measuring, Callable[[Job, Turns], None]]] = {
        "JPEG": (measuring.unpacked(), ours),
        "packed": (measuring.packed(), ours),
        "torchvision's reference": (measuring.unpacked(), reference),
    }
    contenders = [
        Contender(name, partial(_watched, partial(body, job_of(of, f"memory {name}"))))
        for name, (of, body) in bodies.items()
    ]
    found = measuring.contest(contenders, "memory: an epoch in each turn")
    rows = []
    for name in ("JPEG", "packed"):
        for what, key in (
            ("all processes", "all"),
            ("the process that trains", "main"),
            ("a loader process", "worker"),
        ):
            other = found["torchvision's reference"]
            label = f"{what}: {measuring.choices.get('model', 'net')}, {name}"
            rows.append(
                Row("memory", label, rates(found[name], key), "MB", "torchvision's reference", rates(other, key))
            )
    return rows


def _watched(body: Callable[[Turns], None], turns: Turns) -> None:
    """Takes turns whose figures are the peaks of memory."""
    watch = Watch()
    send = turns.next

    def next_turn(figures: Figures | None = None) -> None:
        send(None if figures is None else watch.peaks())
        watch.clear()

    turns.next = next_turn  # type: ignore[method-assign]
    body(turns)


class Watch:
    """Looks at this process and its children again and again, in a thread."""

    def __init__(self) -> None:
        self.clear()
        threading.Thread(target=self._look_on, daemon=True).start()

    def clear(self) -> None:
        self.main = self.worker = self.all = 0.0

    def peaks(self) -> Figures:
        self._look()
        return {"main": self.main, "worker": self.worker, "all": self.all}

    def _look_on(self) -> None:
        while True:
            self._look()
            time.sleep(EVERY_S)

    def _look(self) -> None:
        main = private_mb(os.getpid())
        workers = [private_mb(child) for child in children(os.getpid())]
        self.main, self.worker = max(self.main, main), max(self.worker, *workers, 0.0)
        self.all = max(self.all, main + sum(workers))


def private_mb(process: int) -> float:
    """Memory of a process that is no file's and nobody else's, in MB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return (sizes["Pss_Anon"] + sizes["Pss_Shmem"]) * 1024 / 1e6


def children(process: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found
