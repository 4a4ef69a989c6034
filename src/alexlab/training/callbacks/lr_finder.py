"""The learning-rate range test."""

import itertools
import logging
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from alexlab.pages.plots import new_figure, png
from alexlab.records.atomic import write_atomic
from alexlab.records.disk_errors import RunFileWriter

log = logging.getLogger(__name__)


class LearningRateFinder(RunFileWriter, Callback):
    """Callback that increases the learning rate exponentially and plots the loss against it (Smith, arXiv 1506.01186).

    Writes `lr_find.png` and `lr_find.csv`, logs the rate at which the smoothed loss falls most steeply, and ends the run.
    Overrides the schedule.

    Args:
        min_lr, max_lr: first and last learning rate.
        num_steps: number of training batches; with accumulation, several of them make one optimizer step.
        smoothing: weight of the past in the exponential moving average of the loss.
        stop_factor: the run ends early once the smoothed loss exceeds its minimum by this factor.
    """

    def __init__(
        self,
        min_lr: float = 1e-5,
        max_lr: float = 1.0,
        num_steps: int = 100,
        smoothing: float = 0.9,
        stop_factor: float = 4.0,
    ) -> None:
        if not 0 < min_lr < max_lr:
            raise ValueError(f"min_lr must be positive and below max_lr; got {min_lr} and {max_lr}")
        if num_steps < 2:
            raise ValueError(f"num_steps must be at least 2; got {num_steps}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1); got {smoothing}")
        if stop_factor <= 1:
            raise ValueError(f"stop_factor must be greater than 1; got {stop_factor}")
        self.min_lr, self.max_lr, self.num_steps = min_lr, max_lr, num_steps
        self.smoothing, self.stop_factor = smoothing, stop_factor
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.mean = 0.0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        rate = self.min_lr * (self.max_lr / self.min_lr) ** (len(self.rates) / (self.num_steps - 1))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.rates.append(rate)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning has divided the loss by the accumulation steps. The mean over ranks makes all of them stop together.
        loss = trainer.strategy.reduce(outputs["loss"].detach() * trainer.accumulate_grad_batches, reduce_op="mean")
        self.mean = self.smoothing * self.mean + (1 - self.smoothing) * loss.item()
        bias = 1 - self.smoothing ** len(self.rates)  # the average starts at 0
        self.losses.append(self.mean / bias)
        if len(self.rates) >= self.num_steps or self.losses[-1] > self.stop_factor * min(self.losses):
            trainer.should_stop = True

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, ending: bool = False
    ) -> None:
        if trainer.is_global_zero:
            with self.writing(Path(trainer.default_root_dir) / "lr_find.csv", ending=ending):
                self._report(Path(trainer.default_root_dir))

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module, ending=True)

    def _report(self, run_dir: Path) -> None:
        rows = list(zip(self.rates, self.losses, strict=False))
        (run_dir / "lr_find.csv").write_text("lr,loss\n" + "".join(f"{rate:.6g},{loss:.6g}\n" for rate, loss in rows))
        slopes = [after[1] - before[1] for before, after in itertools.pairwise(rows)]
        if not slopes:
            log.warning("the learning-rate finder needs at least 2 steps; it took %d", len(rows))
            return
        rate, loss = rows[slopes.index(min(slopes))]
        log.info("the loss falls most steeply at optimizer.lr=%.2g; see %s", rate, run_dir / "lr_find.png")
        figure = new_figure(figsize=(6, 4))
        axes = figure.subplots()
        axes.semilogx(*zip(*rows, strict=True))
        axes.plot(rate, loss, "o", label=f"steepest descent: {rate:.2g}")
        axes.set(xlabel="Learning rate", ylabel="Smoothed training loss")
        axes.grid()
        axes.legend(frameon=False)
        write_atomic(run_dir / "lr_find.png", png(figure))
