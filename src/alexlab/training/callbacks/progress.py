"""A progress bar for terminals."""

import sys
from typing import Any

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar, shown only in a terminal: a file would get one line per step.

    Args:
        refresh_rate: number of steps between updates; each update synchronizes with the device to read the loss.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate if sys.stdout.isatty() else 0, leave=False)

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Return the loss of the last step; drop Lightning's version number, which is always empty here."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        loss: Any = pl_module.step_loss
        return metrics if loss is None else {"loss": f"{loss.item():.4f}", **metrics}
