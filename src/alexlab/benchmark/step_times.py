"""Callback of the suite `startup`. Imports nothing that a training does not, since it is part of what is timed."""

import os
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback


class StepTimes(Callback):
    """Callback that appends the times at which the first step begins and ends, and the training ends, to a file.

    Args:
        path: file of three lines per training, in seconds since the epoch.
        stop: exit the process at the end of the first step.
    """

    def __init__(self, path: str, stop: bool = False) -> None:
        self.path, self.stop = path, stop

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 0:
            self._append()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1:
            self._append()
            if self.stop:
                os._exit(0)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._append()

    def _append(self) -> None:
        with open(self.path, "a") as file:
            file.write(f"{time.time()}\n")
