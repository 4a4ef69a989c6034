"""What the figures share: a small run that is forked from this process, and a count of how far it has come."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alexlab.cli import command
from alexlab.distributed.signals import Interrupted
from alexlab.runs.layout import LAST
from alexlab.tasks import train
from alexlab.training import loop
from alexlab.training.module import Classifier
from support.exact_resume import content, difference
from support.images import IMAGES, write_images
from support.runs import trains_on

FORK = multiprocessing.get_context("fork")
WORDS = (
    "data.batch_size=4",
    "trainer.max_epochs=2",
    "callbacks.checkpoint.every_n_steps=1",
    "callbacks.epochs.curves=false",
)
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops")


@dataclass
class Figure:
    """One row of the table.

    Args:
        name: R1 ...
        what: was done.
        done: how often it came out right.
        of: how often it was tried.
        more: what else was seen.
        stock: the same of Lightning without alexlab, where it was measured here.
        took_s: how long it took.
    """

    name: str
    what: str
    done: int
    of: int
    more: str = ""
    stock: str = ""
    took_s: float = 0.0
    lists: dict[str, Any] = field(default_factory=dict)


class Place:
    """A folder with images, and runs in it.

    Args:
        folder: an empty one.
        patch: sets an attribute of a class or a module, for good or for a while.
    """

    def __init__(self, folder: Path, patch: Callable[[Any, str, Any], None] = setattr) -> None:
        command.register()
        loop.hush_lightning()
        torch.set_num_threads(1)  # a process whose threads have started cannot be forked
        self.folder = folder
        self.train = trains_on(write_images(folder / "images", IMAGES), folder)
        self.step = FORK.Value("i", -1)  # batches of training and validation that have begun on rank 0
        self.count = 0
        patch(train, "rehearse", lambda config, splits, *, num_ranks: None)  # its steps would be counted as the run's
        for name in ("training_step", "validation_step"):
            patch(Classifier, name, self._counted(getattr(Classifier, name)))
        self.acts: list[Callable[[Classifier, int], None]] = []  # before a batch: the module, the number of the batch

    def _counted(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def counting(module: Classifier, batch: Any, batch_idx: int) -> Any:
            self.count += 1
            if module.global_rank == 0:
                self.step.value = self.count
            for act in self.acts:
                act(module, self.count)
            return own(module, batch, batch_idx)

        return counting

    def new(self, name: str) -> Path:
        return self.folder / name

    def start(self, *words: str, run_dir: Path, resumed: bool = False) -> Any:
        """Forks a run; its answer is what it ended with, and how long that took since it was asked."""
        ours, theirs = FORK.Pipe(duplex=False)

        def body() -> None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            self.count = 0
            try:
                self.train(*WORDS, *words, run_dir=run_dir, resumed=resumed)
                theirs.send("finished")
            except (Interrupted, Exception) as error:
                theirs.send(f"{type(error).__name__}: {error}")

        self.step.value = -1
        process = FORK.Process(target=body)
        process.start()
        theirs.close()
        return process, ours

    def run(self, *words: str, run_dir: Path, resumed: bool = False) -> str:
        process, answer = self.start(*words, run_dir=run_dir, resumed=resumed)
        return said(process, answer)

    def whole(self, *words: str) -> Path:
        """The run that nothing interrupts."""
        run_dir = self.new("whole_" + "_".join(words).replace("/", "-"))
        if not run_dir.exists():
            assert self.run(*words, run_dir=run_dir) == "finished"
        return run_dir

    def wait_for(self, batch: int, process: Any) -> None:
        """Until so many batches have begun, or the process has ended."""
        while self.step.value < batch and process.is_alive():
            time.sleep(0.0005)


def said(process: Any, answer: Any, within_s: float = 120.0) -> str:
    """What a run ended with."""
    process.join(within_s)
    if process.is_alive():
        process.kill()
        process.join()
        return "hangs"
    try:
        return str(answer.recv()) if answer.poll() else f"ended by {signal.Signals(-process.exitcode).name}"
    except EOFError:
        return f"ended by {signal.Signals(-process.exitcode).name}"
    finally:
        answer.close()


def same(one: Path, other: Path, parts: tuple[str, ...] = PARTS) -> bool:
    """Whether two runs have ended with the same weights, optimizer, rates and counters, to the last bit."""
    first, second = content(one / LAST), content(other / LAST)
    return all(difference(first[part], second[part]) is None for part in parts)


@contextmanager
def acting(place: Place, act: Callable[[Classifier, int], None]) -> Iterator[None]:
    """Something that happens inside of the runs that are forked meanwhile."""
    place.acts.append(act)
    try:
        yield
    finally:
        place.acts.remove(act)
