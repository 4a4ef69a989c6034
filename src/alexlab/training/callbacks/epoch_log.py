"""One log line per epoch, the training rate, and a plot of the learning curves."""

import logging
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from alexlab.data.samplers import data_ranks
from alexlab.output.log_handler import shorter
from alexlab.records.disk_errors import RunFileWriter
from alexlab.records.layout import CURVES
from alexlab.training.callbacks.curves import draw_curves

log = logging.getLogger(__name__)


class EpochLog(RunFileWriter, Callback):
    """Callback that logs one line per epoch and `train/images_per_s`, and plots the learning curves to `curves.png`.

    Args:
        curves: write `curves.png`.
    """

    def __init__(self, curves: bool = True) -> None:
        self.curves = curves
        self.rows: list[dict[str, float]] = []
        self.num_images = 0
        self.train_s = 0.0
        self.lr = 0.0  # at the start of the epoch

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "lr": self.lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.lr = list(state_dict["rows"]), state_dict["lr"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock here too: `on_train_epoch_start` is not called for an epoch that is resumed in the middle."""
        # Without the row of an epoch that was cut short and is now completed.
        self.rows = [row for row in self.rows if row["epoch"] <= trainer.current_epoch]
        self.num_images, self.train_s = 0, 0.0
        self.epoch_start_s = self.mark_s = time.perf_counter()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.on_train_start(trainer, pl_module)
        self.lr = float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else 0.0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.num_images += len(batch[1]) * data_ranks(trainer)[0]
        now_s = time.perf_counter()
        self.train_s += now_s - self.mark_s
        self.mark_s = now_s

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.mark_s = time.perf_counter()  # exclude the validation from the training rate

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # A run resumed after the last batch of an epoch has trained no image in it.
        rate = {"images_per_s": self.num_images / self.train_s} if self.num_images else {}
        pl_module.log_dict({f"train/{name}": value for name, value in rate.items()}, sync_dist=True, reduce_fx="max")
        scores = epoch_metrics(trainer)
        elapsed_s = time.perf_counter() - self.epoch_start_s
        row = {**scores, "epoch": trainer.current_epoch + 1, "lr": self.lr, **rate, "elapsed_s": elapsed_s}
        self.rows.append(row)
        last = str(trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "-")
        number = f"{trainer.current_epoch + 1:>{len(last)}}"
        metric: Any = pl_module.optimized
        full, *narrow = (f"epoch {number}/{last}  {line}" for line in epoch_lines(row, metric.key))
        log.info("%s", full, extra=shorter(narrow))

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, ending: bool = False
    ) -> None:
        if self.curves and self.rows and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / CURVES
            metric: Any = pl_module.optimized
            with self.writing(path, ending=ending):
                draw_curves(self.rows, path, title=path.parent.name, metric=metric.key, mode=metric.mode)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module, ending=True)


def epoch_metrics(trainer: lightning.Trainer) -> dict[str, float]:
    """Return the metrics of the current epoch by name, without those of single steps.

    Sorted, because a resumed run logs them in another order.
    """
    found = sorted(trainer.callback_metrics.items())
    return {name: value.item() for name, value in found if "/" in name and not name.endswith("_step")}


# Values dropped from an epoch's line in a narrow terminal, in this order.
OPTIONAL = ("val/top5", "images_per_s", "train/top1", "elapsed_s", "train/loss")


def epoch_lines(row: dict[str, float], optimized: str) -> list[str]:
    """Return the metrics of an epoch as one line, and shorter lines for narrow terminals; missing metrics are left out.

    Args:
        row: metrics by name.
        optimized: key of the optimized metric, which every line has.
    """
    return [
        _epoch_line({name: row[name] for name in row if name not in OPTIONAL[:count]}, optimized)
        for count in range(len(OPTIONAL) + 1)
    ]


def _epoch_line(row: dict[str, float], optimized: str) -> str:
    parts = []
    for split, names in (("train", ("loss", "top1")), ("val", dict.fromkeys(("loss", "top1", "top5", optimized)))):
        found = [f"{name} {row[f'{split}/{name}']:.4f}" for name in names if f"{split}/{name}" in row]
        if found:
            parts.append(f"{split} {' '.join(found)}")
    if "images_per_s" in row:
        parts.append(f"{row['images_per_s']:.0f} images/s")
    if "elapsed_s" in row:
        parts.append(f"{row['elapsed_s']:.1f} s")
    return "  ".join(parts)
