"""What happens around the training: the bar, the log line and curves of each epoch, the learning-rate test."""

import copy
import io
import itertools
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from alexlab.data.samplers import data_ranks
from alexlab.errors import NumericError
from alexlab.models.summary import layer_rows, layer_table, write_rows
from alexlab.output.csv_files import write_csv
from alexlab.output.terminal import Terminal
from alexlab.runs.atomic import Writer, write_durably
from alexlab.runs.layout import LAYERS, NOT_FINITE
from alexlab.runs.record import Card, peak_memory_mb

log = logging.getLogger(__name__)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, in a terminal only: in a file it would be a line for each step.

    Args:
        refresh_rate: steps between two updates; each reads the loss from the device.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate if sys.stdout.isatty() else 0, leave=False)

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """The loss of the step, read now; the version number that Lightning adds says nothing here."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        loss: Any = pl_module.loss_step
        return metrics if loss is None else {"loss": f"{loss.item():.4f}", **metrics}


class CardUpdates(Writer, Callback):
    """Keeps `run.json` up to date with the last and the best epoch, the rate and the memory."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}  # all of it, since an earlier update may have found the disk full

    def _update(self, trainer: lightning.Trainer, **values: Any) -> None:
        self.known |= values
        card = Card(Path(trainer.default_root_dir))
        with self.writing(card.path):
            card.update(**self.known)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        gpus: list[str] = []
        if isinstance(trainer.accelerator, CUDAAccelerator):
            gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        net: Any = getattr(pl_module.net, "whole", pl_module.net)  # of two towers, the net that they are
        count = sum(parameter.numel() for parameter in net.parameters())
        self._update(trainer, gpus=gpus, parameters=count)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        scores = epoch_scores(trainer)
        logs = [log for log in trainer.callbacks if isinstance(log, EpochLog)]  # type: ignore[attr-defined]
        rates = [row["images_per_s"] for log in logs for row in log.rows if "images_per_s" in row]
        best: Any = pl_module.best
        self._update(
            trainer,
            last={**scores, "epoch": trainer.current_epoch, "step": trainer.global_step},
            best=dict(best),
            images_per_s=statistics.median(rates) if rates else None,
            peak_memory_mb=peak_memory_mb(),
        )


class NotFinite(Writer, Callback):
    """Lists the images of the step whose loss or gradient was not finite: epoch, batch, path and label."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if not isinstance(exception, NumericError) or not exception.batches:
            return
        split = trainer.datamodule.splits.train  # type: ignore[attr-defined]
        rows: list[tuple[Any, ...]] = [("epoch", "batch", "path", "class")]
        sampler: Any = trainer.train_dataloader.batch_sampler  # type: ignore[union-attr]
        for number, batch in zip(exception.batches, sampler.batches(exception.batches), strict=True):
            for _, index in batch:
                label = trainer.datamodule.splits.classes[split.labels[index]]  # type: ignore[attr-defined]
                rows.append((trainer.current_epoch, number, split.paths[index], label))
        path = Path(trainer.default_root_dir) / NOT_FINITE.format(rank=trainer.global_rank)
        with self.writing(path, ending=True):
            write_csv(path, rows)


class LayerSummary(Callback):
    """The table of the net's layers at the start of a run, in its log and as `layers.csv`; the jobs of a sweep have the file.

    Args:
        max_layers: the layers of a deeper net are in the file only.
    """

    def __init__(self, max_layers: int = 40) -> None:
        self.max_layers = max_layers

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        settings: Any = trainer.datamodule.config  # type: ignore[attr-defined]
        net: Any = getattr(pl_module.net, "whole", pl_module.net)  # of two towers, the net that they are
        # A copy whose tensors have shapes and no memory.
        memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in net.buffers()}
        memo |= {id(parameter): torch.nn.Parameter(parameter.to("meta")) for parameter in net.parameters()}
        rows = layer_rows(copy.deepcopy(net, memo).float(), channels=settings.channels, size=settings.image_size)
        write_rows(rows, Path(trainer.default_root_dir) / LAYERS)
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            return  # a table for each job of a sweep is too much
        if len(rows) > self.max_layers:
            log.info("net: %d layers, listed in %s", len(rows), LAYERS)
            return
        text = io.StringIO()
        title = f"{settings.channels} channels, {settings.image_size} x {settings.image_size}"
        Terminal(file=text, width=165).print(layer_table(rows, title))
        for line in text.getvalue().rstrip().split("\n"):
            log.info("%s", line)


class EpochLog(Writer, Callback):
    """A line in `train.log` for each epoch, `train/images_per_s`, and `curves.png` with training against validation.

    Args:
        curves: draw the picture at the end of the run.
    """

    def __init__(self, curves: bool = True) -> None:
        self.curves = curves
        self.rows: list[dict[str, float]] = []
        self.num_images = 0
        self.train_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A run that is resumed inside an epoch has no start of that epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.num_images, self.train_s = 0, 0.0
        self.epoch_start_s = self.mark_s = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.num_images += len(batch[1]) * data_ranks(trainer)[0]
        now_s = time.perf_counter()
        self.train_s += now_s - self.mark_s
        self.mark_s = now_s

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.mark_s = time.perf_counter()  # what the validation took is no part of the training rate

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # A run that is resumed after the last batch of an epoch has no rate for it.
        rate = {"images_per_s": self.num_images / self.train_s} if self.num_images else {}
        pl_module.log_dict({f"train/{name}": value for name, value in rate.items()}, sync_dist=True, reduce_fx="max")
        scores = epoch_scores(trainer)
        elapsed_s = time.perf_counter() - self.epoch_start_s
        row = {**scores, "epoch": trainer.current_epoch, **rate, "elapsed_s": elapsed_s}
        self.rows.append(row)
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "-"
        log.info("epoch %s/%s  %s", trainer.current_epoch + 1, last, epoch_line(row))

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, ending: bool = False
    ) -> None:
        if self.curves and self.rows and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "curves.png"
            with self.writing(path, ending=ending):
                draw_curves(self.rows, path)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module, ending=True)


def epoch_scores(trainer: lightning.Trainer) -> dict[str, float]:
    """What is known at the end of an epoch; not of its last step."""
    found = trainer.callback_metrics.items()
    return {name: value.item() for name, value in found if "/" in name and not name.endswith("_step")}


def epoch_line(row: dict[str, float]) -> str:
    """The scores of an epoch in one line; a score that was not taken is left out."""
    parts = []
    for split, names in (("train", ("loss", "top1")), ("val", ("loss", "top1", "top5"))):
        found = [f"{name} {row[f'{split}/{name}']:.4f}" for name in names if f"{split}/{name}" in row]
        if found:
            parts.append(f"{split} {' '.join(found)}")
    if "images_per_s" in row:
        parts.append(f"{row['images_per_s']:.0f} images/s")
    return "  ".join([*parts, f"{row['elapsed_s']:.1f} s"])


def draw_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Draws loss and top-1 over the epochs, training against validation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("loss", "top-1 accuracy"), strict=True):
        for split, style in (("train", "o-"), ("val", "s-")):
            points = [(row["epoch"] + 1, row[f"{split}/{name}"]) for row in rows if f"{split}/{name}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, markersize=3, label=split)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:  # a run may end before its first validation, without a score
            axes.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_durably(path, content.getbuffer())


class LearningRateTest(Writer, Callback):
    """Raises the learning rate from step to step and draws the loss over it, then ends the run (Smith, arXiv 1506.01186).

    Writes `lr_find.png` and `lr_find.csv`, and names the rate where the smoothed loss falls most steeply. The schedule of
    the run is overruled.

    Args:
        min_lr, max_lr: where the rate begins and ends; it grows by the same factor at each step.
        num_steps: steps between them.
        smoothing: weight of the past in the running mean of the loss.
        stop_factor: the test ends when the smoothed loss is this many times its smallest value.
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
        rate = self.min_lr * (self.max_lr / self.min_lr) ** (len(self.rates) / max(1, self.num_steps - 1))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.rates.append(rate)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.mean = self.smoothing * self.mean + (1 - self.smoothing) * outputs["loss"].item()
        self.losses.append(self.mean / (1 - self.smoothing ** len(self.rates)))  # the mean starts from 0
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
            log.warning("the learning-rate test took %d steps; it needs at least 2", len(rows))
            return
        rate, loss = rows[slopes.index(min(slopes))]
        log.info("the loss falls most steeply at optimizer.lr=%.2g; see %s", rate, run_dir / "lr_find.png")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.semilogx(*zip(*rows, strict=True))
        axes.plot(rate, loss, "o", label=f"steepest descent: {rate:.2g}")
        axes.set(xlabel="optimizer.lr", ylabel="training loss, smoothed")
        axes.grid(alpha=0.3)
        axes.legend()
        _save(figure, run_dir / "lr_find.png")
