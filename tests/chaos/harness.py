"""A small run, forked from this process, that scenarios kill, signal or sabotage at a chosen batch."""

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

from alexlab.cli.hydra_state import register
from alexlab.config import preflight
from alexlab.distributed.signals import Interrupted
from alexlab.records.layout import LAST
from alexlab.training.console import quiet_lightning
from alexlab.training.module import Classifier
from support.exact_resume import content, difference
from support.images import IMAGES, write_images
from support.runs import trains_on

FORK = multiprocessing.get_context("fork")
OVERRIDES = (
    "data.batch_size=4",
    "trainer.max_epochs=2",
    "callbacks.checkpoint.every_n_steps=1",
    "callbacks.epochs.curves=false",
)
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops")
Action = Callable[[Classifier, int], None]


@dataclass
class Result:
    """One row of the table.

    Args:
        name: name of the scenario.
        what: the fault and the expected outcome.
        passed: number of tries with the expected outcome.
        tries: number of tries.
        remarks: other observations.
        stock: passed/tries of stock Lightning, if it was measured too.
        seconds: duration of all tries.
        lists: observations that are in the JSON file only.
    """

    name: str
    what: str
    passed: int
    tries: int
    remarks: str = ""
    stock: str = ""
    seconds: float = 0.0
    lists: dict[str, Any] = field(default_factory=dict)


class Workspace:
    """A folder with images and runs.

    Args:
        folder: an empty folder.
        patch: sets an attribute of a class or module, permanently or until the end of a test.
    """

    def __init__(self, folder: Path, patch: Callable[[Any, str, Any], None] = setattr) -> None:
        register()
        quiet_lightning()
        torch.set_num_threads(1)  # a process whose OpenMP threads have started cannot be forked
        self.folder = folder
        self.train = trains_on(write_images(folder / "images", IMAGES), folder)
        self.step = FORK.Value("i", -1)  # training and validation batches started on rank 0
        self.count = 0
        # The steps of the rehearsal would be counted as steps of the run.
        patch(preflight, "rehearse", lambda config, splits, *, num_ranks: None)
        for name in ("training_step", "validation_step"):
            patch(Classifier, name, self._counted(getattr(Classifier, name)))
        self.actions: list[Action] = []  # called before each batch with the module and the number of the batch

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counting(module: Classifier, batch: Any, batch_idx: int) -> Any:
            self.count += 1
            if module.global_rank == 0:
                self.step.value = self.count
            for action in self.actions:
                action(module, self.count)
            return step(module, batch, batch_idx)

        return counting

    def path(self, name: str) -> Path:
        return self.folder / name

    def start(self, *overrides: str, run_dir: Path, resumed: bool = False) -> Any:
        """Fork a run; return its process and the connection that receives its outcome."""
        receiver, sender = FORK.Pipe(duplex=False)

        def body() -> None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            self.count = 0
            try:
                self.train(*OVERRIDES, *overrides, run_dir=run_dir, resumed=resumed)
                sender.send("finished")
            except (Interrupted, Exception) as error:
                sender.send(f"{type(error).__name__}: {error}")

        self.step.value = -1
        process = FORK.Process(target=body)
        process.start()
        sender.close()
        return process, receiver

    def run(self, *overrides: str, run_dir: Path, resumed: bool = False) -> str:
        process, receiver = self.start(*overrides, run_dir=run_dir, resumed=resumed)
        return outcome(process, receiver)

    def uninterrupted(self, *overrides: str) -> Path:
        """Return the folder of the uninterrupted run with these overrides."""
        run_dir = self.path("uninterrupted_" + "_".join(overrides).replace("/", "-"))
        if not run_dir.exists():
            assert self.run(*overrides, run_dir=run_dir) == "finished"
        return run_dir

    def wait_for(self, batch: int, process: Any) -> None:
        """Wait until `batch` batches have started or the process has exited."""
        while self.step.value < batch and process.is_alive():
            time.sleep(0.0005)

    @contextmanager
    def injecting(self, action: Action) -> Iterator[None]:
        """Call an action before each batch of the runs that are started inside the block."""
        self.actions.append(action)
        try:
            yield
        finally:
            self.actions.remove(action)


def outcome(process: Any, receiver: Any, within_s: float = 120.0) -> str:
    """Return "finished", the error, the signal that killed a run, or "hangs"."""
    process.join(within_s)
    if process.is_alive():
        process.kill()
        process.join()
        return "hangs"
    try:
        return str(receiver.recv()) if receiver.poll() else f"killed by {signal.Signals(-process.exitcode).name}"
    except EOFError:
        return f"killed by {signal.Signals(-process.exitcode).name}"
    finally:
        receiver.close()


def identical(one: Path, other: Path) -> bool:
    """Return whether two runs ended with bit-identical weights, optimizer, learning rates and counters."""
    first, second = content(one / LAST), content(other / LAST)
    return all(difference(first[part], second[part]) is None for part in PARTS)
