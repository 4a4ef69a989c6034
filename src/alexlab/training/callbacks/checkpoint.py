"""The best and the latest checkpoint of a run."""

import math
import os
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from alexlab import compat
from alexlab.distributed.signals import Interrupted, signals
from alexlab.records.atomic import atomic_path, write_atomic
from alexlab.records.disk_errors import RunFileWriter
from alexlab.records.layout import BEST, EARLIER_LASTS, LAST
from alexlab.records.optimized import OptimizedMetric
from alexlab.training.checkpoint_io import remove_partial_checkpoints


class CheckpointCallback(RunFileWriter, Checkpoint):
    """Callback that saves `checkpoints/best.ckpt` and `checkpoints/last.ckpt`.

    Of equally good validations the one with the lower `val/loss` is the best, then the earlier one.

    `last.ckpt` is written regardless of its score; Lightning's ModelCheckpoint (2.6) writes it only along with the best one.
    If a validation is due at the same step, both are written after it, so that a resumed run does not lose its result. Must
    be the last callback.

    Args:
        monitor: metric that ranks checkpoints.
        mode: `max` or `min`.
        every_n_epochs: epochs between two writes of `last.ckpt`; it is always written after the last epoch.
        every_n_steps: optimizer steps between two writes of `last.ckpt` within an epoch; None disables them.
        every_s: seconds between two writes of `last.ckpt` within an epoch; None disables them.
        on_error: response to a full disk: `raise` ends the run, `warn` continues without the checkpoint and keeps metrics
            in memory until there is space again.
        keep_last: number of recent checkpoints to keep, as `step_<n>.ckpt` next to `last.ckpt`; 1 keeps only `last.ckpt`.
    """

    def __init__(
        self,
        monitor: str = "val/top1",
        mode: str = "max",
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        every_s: float | None = None,
        on_error: str = "raise",
        keep_last: int = 1,
    ) -> None:
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error must be raise or warn; got {on_error!r}")
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be max or min; got {mode!r}")
        for name, value in (
            ("every_n_epochs", every_n_epochs),
            ("every_n_steps", every_n_steps),
            ("keep_last", keep_last),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if every_s is not None and every_s <= 0:
            raise ValueError(f"every_s must be positive; got {every_s}")
        self.monitor, self.mode, self.every_n_epochs = monitor, mode, every_n_epochs
        self.every_n_steps, self.every_s, self.on_error, self.keep_last = every_n_steps, every_s, on_error, keep_last
        self.saved_s = time.monotonic()  # time of the last write of `last.ckpt`
        self.due = False  # write `last.ckpt` after the validation that follows
        self.best_score: float | None = None  # of the metric that is monitored
        self.best_loss: float | None = None  # the validation loss at that score
        self.last_step = 0  # optimizer step of `last.ckpt`
        self.best_is_lost = False  # the resumed run had a best checkpoint, which is missing or corrupt

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best_score", "best_loss", "last_step", "due")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_loss = state_dict["best_score"], state_dict["best_loss"]
        self.last_step, self.due = state_dict["last_step"], state_dict["due"]
        if self.best_is_lost:
            self.best_score = None  # so that the next validation writes a new one

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.best_is_lost:
            pl_module.best = {}  # type: ignore[assignment]
            pl_module.val_metrics = {}  # type: ignore[assignment]

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        for writer in (trainer.strategy.checkpoint_io, *trainer.loggers, *trainer.callbacks):  # type: ignore[attr-defined]
            if isinstance(writer, RunFileWriter):
                writer.continue_on_full_disk = self.on_error == "warn"
        if trainer.is_global_zero:
            remove_partial_checkpoints(Path(trainer.default_root_dir) / BEST.parent)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.saved_s = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch, between two optimizer steps; before a validation, postpone the save until after it."""
        if is_accumulating(trainer) or trainer.is_last_batch:
            return
        if signals.agreed is None and not self._due(trainer):
            return
        if compat.validation_is_due(trainer):
            self.due = True
            return
        self._save_last(trainer, equals_best=False)
        raise_if_stopped()

    def _due(self, trainer: lightning.Trainer) -> bool:
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            return True
        if self.every_s is None:
            return False
        # All ranks take part in saving, so rank 0's clock decides.
        elapsed: bool = trainer.strategy.broadcast(time.monotonic() - self.saved_s >= self.every_s)
        return elapsed

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save after a validation within an epoch; the one at its end is handled by `on_train_epoch_end`."""
        if trainer.sanity_checking or trainer.is_last_batch:
            return
        due, self.due = self.due, False  # before `best.ckpt` is written, whose copy may become `last.ckpt`
        is_best = self._save_best(trainer)
        if due:
            self._save_last(trainer, equals_best=is_best)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        is_best = self._save_best(trainer)
        # Here rather than at the end of the training, where EMA has replaced the weights by their average.
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        is_last = is_last or trainer.global_step == trainer.max_steps
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0 or is_last or signals.agreed is not None:
            self._save_last(trainer, equals_best=is_best)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        averaged = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if self.last_step != trainer.global_step and not averaged:
            self._save_last(trainer, equals_best=False)

    def _save_best(self, trainer: lightning.Trainer) -> bool:
        found = trainer.callback_metrics
        if self.monitor not in found or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        score, loss = float(found[self.monitor]), float(found.get("val/loss", math.nan))
        rank = OptimizedMetric(self.monitor, self.mode).rank
        if self.best_score is not None and rank(score, loss) <= rank(self.best_score, self.best_loss):
            return False
        before = self.best_score, self.best_loss, self.last_step
        self.best_score, self.best_loss = (None if math.isnan(value) else value for value in (score, loss))
        self.last_step = trainer.global_step
        trainer.save_checkpoint(Path(trainer.default_root_dir) / BEST)
        if self._failed(trainer):
            self.best_score, self.best_loss, self.last_step = before  # the earlier `best.ckpt` is still there
            return False
        return True

    def _failed(self, trainer: lightning.Trainer) -> bool:
        """Return whether rank 0 found the disk full when it wrote the last checkpoint, with `on_error=warn`."""
        if self.on_error == "raise":
            return False
        found: bool = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failed", False))
        return found

    def _save_last(self, trainer: lightning.Trainer, *, equals_best: bool) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        before = self.last_step
        self.last_step, self.saved_s = trainer.global_step, time.monotonic()
        best, last = Path(trainer.default_root_dir) / BEST, Path(trainer.default_root_dir) / LAST
        if not equals_best:
            trainer.save_checkpoint(last)
            if self._failed(trainer):
                self.last_step = before
                return
        if not trainer.is_global_zero:
            return
        with self.writing(last):
            if equals_best:
                _hard_link(best, last)
            if self.keep_last > 1:
                _hard_link(last, last.with_name(EARLIER_LASTS.replace("*", f"{trainer.global_step:08d}")))
                for path in sorted(last.parent.glob(EARLIER_LASTS))[: -self.keep_last]:
                    path.unlink()


def is_accumulating(trainer: lightning.Trainer) -> bool:
    """Return whether the current training batch ends without an optimizer step."""
    num_batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    is_last = trainer.is_last_batch or num_batches == trainer.num_training_batches
    return num_batches % trainer.accumulate_grad_batches != 0 and not is_last


def save_last(trainer: lightning.Trainer) -> None:
    """Write `last.ckpt` now if the trainer has a CheckpointCallback."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, CheckpointCallback):
            callback._save_last(trainer, equals_best=False)


def raise_if_stopped() -> None:
    """Raise Interrupted if the ranks agreed to stop after this step."""
    if signals.agreed is not None:
        raise Interrupted(signals.agreed, agreed=True)


def _hard_link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it; a later write replaces the file at `source` and leaves the one at `target`."""
    try:
        with atomic_path(target) as partial:
            os.link(source, partial)
    except OSError:  # a file system without hard links
        write_atomic(target, source.read_bytes())
