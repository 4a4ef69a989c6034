"""How a training ends by a signal: all ranks after the same optimizer step, or in the same batch of a validation."""

import copy
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from alexlab import compat
from alexlab.distributed.signals import Interrupted, signals
from alexlab.training.callbacks.checkpoint import is_accumulating, save_last
from alexlab.training.module import Classifier


class PreemptionCallback(Callback):
    """Lets the ranks agree on a signal that any of them has heard; it must be the first callback.

    After an optimizer step `Checkpoints`, the last callback, saves and ends the run. A validation is left at once: what is
    saved then is the state before it, and the resumed run begins with it.

    Args:
        timeout_s: how long a rank waits for the others.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout = timedelta(seconds=timeout_s)
        self.group: Any = None  # the ranks, on the CPU
        self.left = False  # the validation that runs is left unfinished
        self.before_validation = False  # the checkpoint that the run began with stands before a validation
        self.progress: Any = None  # of the validation loop, before the validation that runs

    def state_dict(self) -> dict[str, Any]:
        return {"before_validation": self.left}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before_validation = state_dict["before_validation"]

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Takes the signals over from Lightning, whose handler speaks to the other ranks from inside of a step."""
        compat.disable_signal_handlers(trainer)
        if self.group is None and torch.distributed.is_initialized() and torch.distributed.get_backend() != "gloo":
            self.group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Goes on with the validation that was left, where the run begins with one."""
        if not self.before_validation:
            return
        self.before_validation = False
        compat.repeat_validation(trainer)
        assert isinstance(pl_module, Classifier)
        pl_module.log_train_metrics()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if signals.agreed is not None:  # nobody saves checkpoints
            raise Interrupted(signals.agreed, agreed=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not is_accumulating(trainer):
            self._agree(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.progress = copy.deepcopy(trainer.fit_loop.epoch_loop.val_loop.batch_progress)

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking and is_accumulating(trainer):
            return  # the gradients of half a step cannot be saved
        self._agree(trainer)
        if signals.agreed is None:
            return
        if trainer.sanity_checking:
            raise Interrupted(signals.agreed, agreed=True)
        assert isinstance(pl_module, Classifier)
        pl_module.abort_validation = self.left = True
        raise StopIteration  # by which the loop ends, with its hooks: averaged weights are put back

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.left:
            assert signals.agreed is not None
            trainer.fit_loop.epoch_loop.val_loop.batch_progress = self.progress
            save_last(trainer)
            raise Interrupted(signals.agreed, agreed=True)

    def _agree(self, trainer: lightning.Trainer) -> None:
        heard = signals.first or 0
        if trainer.world_size > 1:
            largest = torch.tensor(heard)
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=self.group)
            heard = int(largest)
        signals.agreed = heard or None
