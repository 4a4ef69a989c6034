"""When checkpoints are written, and how: whole or not at all."""

import io
import os
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from alexlab.runs import BEST, LAST


class DurableIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then puts it there: a reader sees the old one or the new one.

    Lightning's own writes to the temporary folder first, which destroys the old checkpoint when the process is killed and
    that folder is on another file system, and it says nothing when the target cannot be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Serialises into memory, so that a full disk is an OSError with its reason, and replaces the file."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_durably(Path(path), content.getbuffer())


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Writes a file whole or not at all, and only returns when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # of the new name
    finally:
        os.close(folder)


class Checkpoints(Checkpoint):
    """`checkpoints/best.ckpt` and `checkpoints/last.ckpt` in the run folder; of equally good epochs the first stays best.

    The last one is that of the last epoch, or step, whatever its score (Lightning's ModelCheckpoint writes it only when the
    best one is written too). Where a validation follows, they are written after it, so that nothing is lost when the run is
    resumed.

    Args:
        monitor: the score that decides.
        mode: `max` or `min`.
        every_epochs: epochs between two `last.ckpt`; the last epoch has one always.
        every_steps: optimizer steps between two `last.ckpt` inside an epoch; None for none.
        every_s: seconds between two `last.ckpt` inside an epoch; None for none.
    """

    def __init__(
        self,
        monitor: str = "val/top1",
        mode: str = "max",
        every_epochs: int = 1,
        every_steps: int | None = None,
        every_s: float | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be max or min; got {mode!r}")
        for name, value in (("every_epochs", every_epochs), ("every_steps", every_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if every_s is not None and every_s <= 0:
            raise ValueError(f"every_s must be positive; got {every_s}")
        self.monitor, self.mode, self.every_epochs = monitor, mode, every_epochs
        self.every_steps, self.every_s = every_steps, every_s
        self.saved_s = time.monotonic()  # when `last.ckpt` was written last
        self.due = False  # a `last.ckpt` is to be written after the validation that follows
        self.best_score: float | None = None
        self.last_step = 0  # of the last `last.ckpt`

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.last_step = state_dict["best_score"], state_dict["last_step"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.saved_s = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves between two steps of an epoch: not inside of an accumulated one, and not before a validation."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or trainer.is_last_batch or not self._due(trainer):
            return
        assert trainer.fit_loop._data_fetcher is not None
        if loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            self.due = True
        else:
            self._save_last(trainer, equals_best=False)

    def _due(self, trainer: lightning.Trainer) -> bool:
        if self.every_steps is not None and trainer.global_step % self.every_steps == 0:
            return True
        if self.every_s is None:
            return False
        # The clock of the first rank decides for all: they write together.
        elapsed: bool = trainer.strategy.broadcast(time.monotonic() - self.saved_s >= self.every_s)
        return elapsed

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keeps the best of the validations inside an epoch; that at its end is looked at when the epoch is over."""
        if trainer.sanity_checking or trainer.is_last_batch:
            return
        is_best = self._save_best(trainer)
        if self.due:
            self.due = False
            self._save_last(trainer, equals_best=is_best)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        is_best = self._save_best(trainer)
        if (trainer.current_epoch + 1) % self.every_epochs == 0:
            self._save_last(trainer, equals_best=is_best)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.last_step != trainer.global_step:
            self._save_last(trainer, equals_best=False)

    def _save_best(self, trainer: lightning.Trainer) -> bool:
        score = trainer.callback_metrics.get(self.monitor)
        if score is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        value = float(score)
        sign = 1 if self.mode == "max" else -1
        if self.best_score is not None and sign * value <= sign * self.best_score:
            return False
        self.best_score, self.last_step = value, trainer.global_step
        trainer.save_checkpoint(Path(trainer.default_root_dir) / BEST)
        return True

    def _save_last(self, trainer: lightning.Trainer, *, equals_best: bool) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.last_step, self.saved_s = trainer.global_step, time.monotonic()
        best, last = Path(trainer.default_root_dir) / BEST, Path(trainer.default_root_dir) / LAST
        if not equals_best:
            trainer.save_checkpoint(last)
        elif trainer.is_global_zero:
            _link(best, last)


def position(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """How many epochs are whole in a checkpoint, and how many batches of the next one each rank has had."""
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["current"]
    inside = epochs["processed"] < epochs["ready"]
    return epochs["processed"], batches["ready"] if inside else 0


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name; a later write under the first name makes a new file and leaves this one."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        os.link(source, unfinished)
        os.replace(unfinished, target)
    except OSError:  # a file system without hard links
        write_durably(target, source.read_bytes())
    finally:
        unfinished.unlink(missing_ok=True)
