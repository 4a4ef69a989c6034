"""A progress bar for terminals."""

import time
from datetime import timedelta
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar

from alexlab.output.log_handler import log_terminal
from alexlab.output.progress import line_progress


class ProgressBar(LightningProgressBar):
    """One line at the bottom of a terminal: the epoch, counted from 1, its batches, the loss, and the time left for the run.

    It is drawn on the console that prints the log lines, which therefore appear above it. Files and pipes get no bar.

    Args:
        refresh_s: time between two updates in seconds; each update synchronizes with the device to read the loss.
    """

    def __init__(self, refresh_s: float = 0.25) -> None:
        super().__init__()
        self.refresh_s = refresh_s
        self.is_enabled = True
        self.line: Any = None  # the rich.progress.Progress while it is shown
        self.next_s = 0.0  # time of the next update
        self.label, self.total = "", 0.0  # of the training in the current epoch
        self.end_s: float | None = None  # when the run is expected to end

    def disable(self) -> None:
        self.is_enabled = False

    def enable(self) -> None:
        self.is_enabled = True

    def on_sanity_check_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the bar here too: `on_train_epoch_start` is not called for an epoch that is resumed in the middle."""
        self.start_s, self.start_step = time.monotonic(), trainer.global_step
        self._show_epoch(trainer, done=trainer.fit_loop.batch_idx + 1)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._show_epoch(trainer, done=0)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(batch_idx + 1 == self.total):
            self.end_s = self._expected_end_s(trainer)
            self._update(batch_idx + 1, self.get_metrics(trainer, pl_module))

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        sanity = trainer.sanity_checking
        totals = trainer.num_sanity_val_batches if sanity else trainer.num_val_batches
        self._show("sanity check" if sanity else f"{self.label} val", sum(totals))

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due():
            self._update(sum(trainer.num_val_batches[:dataloader_idx]) + batch_idx + 1)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._show_epoch(trainer, done=trainer.fit_loop.batch_idx + 1)

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.end_s = None
        self._show("test", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due():
            self._update(sum(trainer.num_test_batches[:dataloader_idx]) + batch_idx + 1)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._stop()

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Return the loss of the last step and metrics logged with `prog_bar=True`."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # always empty here
        loss: Any = getattr(pl_module, "step_loss", None)
        return metrics if loss is None else {"loss": loss.item(), **metrics}

    def _expected_end_s(self, trainer: lightning.Trainer) -> float | None:
        """Return when the last step is expected to end, from the mean time per step so far, validations included."""
        total, done = trainer.estimated_stepping_batches, trainer.global_step - self.start_step
        if done <= 0 or not 0 < total < float("inf"):
            return None
        now_s = time.monotonic()
        return now_s + (now_s - self.start_s) / done * max(0.0, total - trainer.global_step)

    def _show_epoch(self, trainer: lightning.Trainer, *, done: int) -> None:
        last = trainer.max_epochs or -1
        self.label = f"epoch {trainer.current_epoch + 1}{f'/{last}' if last > 0 else ''}"
        self.total = self.total_train_batches
        self._show(self.label, self.total, done=done)

    def _is_due(self, last: bool = False) -> bool:
        return self.line is not None and (last or time.monotonic() >= self.next_s)

    def _show(self, label: str, total: float, *, done: int = 0) -> None:
        """Start a bar for a part of the run, replacing the previous one."""
        if not self.is_enabled or not log_terminal().is_interactive:
            return
        if self.line is None:
            self.line = line_progress()
            self.line.start()
        for task in self.line.task_ids:
            self.line.remove_task(task)
        self.line.add_task(label, total=total if total < float("inf") else None, count="", values="", left="")
        self._update(done)

    def _update(self, done: float, metrics: dict[str, Any] | None = None) -> None:
        left_s = None if self.end_s is None else max(0.0, self.end_s - time.monotonic())
        left = f"{timedelta(seconds=round(left_s))} left" if left_s is not None and left_s >= 1 else ""
        values = " ".join(f"{name} {value:.4f}" for name, value in (metrics or {}).items())
        task = self.line.tasks[0]
        count = f"{done:.0f}" if task.total is None else f"{done:.0f}/{task.total:.0f}"
        self.line.update(task.id, completed=done, count=count, values=values, left=left)
        self.line.refresh()
        self.next_s = time.monotonic() + self.refresh_s

    def _stop(self) -> None:
        if self.line is not None:
            self.line.stop()
            self.line = None
