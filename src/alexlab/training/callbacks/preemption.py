"""Coordinated stop after a signal: every rank stops after the same optimizer step, or at the same validation batch."""

import copy
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from alexlab import compat
from alexlab.distributed.signals import signals
from alexlab.training.callbacks.checkpoint import is_accumulating, raise_if_stopped, save_last
from alexlab.training.module import Classifier


class PreemptionCallback(Callback):
    """Callback that all-reduces pending signals so that every rank stops after the same step.

    It must precede all callbacks that act on batches.

    After an optimizer step, CheckpointCallback, the last callback, saves and ends the run; at the end of an epoch it only saves,
    and this callback ends the run when the metrics of the epoch have been logged. A validation is aborted at once:
    the checkpoint has the state before it, and the resumed run starts by repeating it.

    Args:
        timeout_s: maximum time to wait for the other ranks, in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout = timedelta(seconds=timeout_s)
        self.group: Any = None  # process group of all ranks on the CPU
        self.aborted = False  # the current validation was aborted
        self.before_validation = False  # the run was resumed from a checkpoint that precedes a validation
        self.progress: Any = None  # batch progress of the validation loop before the current validation

    def state_dict(self) -> dict[str, Any]:
        return {"before_validation": self.aborted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before_validation = state_dict["before_validation"]

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Disable Lightning's signal handling, which communicates with the other ranks in the middle of a step."""
        compat.disable_signal_handlers(trainer)
        compat.resume_by_epochs(trainer)
        if self.group is None and torch.distributed.is_initialized() and torch.distributed.get_backend() != "gloo":
            self.group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.before_validation:
            compat.await_validation(trainer, lambda: self.before_validation)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Repeat the validation that was aborted before the run was resumed."""
        # One before a stop for `max_time` is not due in a run that now has more time.
        self.before_validation = self.before_validation and compat.validation_is_due(trainer)
        if not self.before_validation:
            return
        compat.repeat_validation(trainer)
        if trainer.is_last_batch:
            assert isinstance(pl_module, Classifier)
            pl_module.log_train_metrics()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """End the run after a signal in the last step of the epoch before, whose metrics Lightning has logged by now."""
        raise_if_stopped()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """End the run after a signal in its last step."""
        raise_if_stopped()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        raise_if_stopped()  # only reached without a CheckpointCallback

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not is_accumulating(trainer):
            self._agree(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.before_validation = False
        self.progress = copy.deepcopy(trainer.fit_loop.epoch_loop.val_loop.batch_progress)

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._agree(trainer)
        if signals.agreed is None:
            return
        if trainer.sanity_checking:
            raise_if_stopped()
        assert isinstance(pl_module, Classifier)
        pl_module.abort_validation = self.aborted = True
        raise StopIteration  # ends the loop but still runs its hooks, which restore averaged weights

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.aborted:
            trainer.fit_loop.epoch_loop.val_loop.batch_progress = self.progress
            save_last(trainer)
            raise_if_stopped()

    def _agree(self, trainer: lightning.Trainer) -> None:
        signum = signals.first or 0
        if trainer.world_size > 1:
            largest = torch.tensor(signum)
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=self.group)
            signum = int(largest)
        signals.agreed = signum or None
