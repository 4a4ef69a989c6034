"""Updates of `run.json` during training."""

import statistics
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import Callback

from alexlab.records.disk_errors import RunFileWriter
from alexlab.records.provenance import peak_memory_mb
from alexlab.records.record import RunRecord
from alexlab.training.callbacks.epoch_log import EpochLog, epoch_metrics


class RunRecordUpdates(RunFileWriter, Callback):
    """Callback that updates `run.json` with the last and the best epoch, the training rate and the peak memory."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}  # every value so far: an earlier update may have failed on a full disk

    def _update(self, trainer: lightning.Trainer, **values: Any) -> None:
        self.known |= values
        record = RunRecord(Path(trainer.default_root_dir))
        with self.writing(record.path):
            record.update(**self.known)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        gpus: list[str] = []
        if isinstance(trainer.accelerator, CUDAAccelerator):
            gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        net: Any = getattr(pl_module.net, "whole", pl_module.net)  # a Tower holds half of the net
        count = sum(parameter.numel() for parameter in net.parameters())
        self._update(trainer, gpus=gpus, parameters=count)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        scores = epoch_metrics(trainer)
        logs = [log for log in trainer.callbacks if isinstance(log, EpochLog)]  # type: ignore[attr-defined]
        rates = [row["images_per_s"] for log in logs for row in log.rows if "images_per_s" in row]
        best: Any = pl_module.best
        self._update(
            trainer,
            last={**scores, "epoch": trainer.current_epoch + 1, "step": trainer.global_step},
            best=dict(best),
            images_per_s=statistics.median(rates) if rates else None,
            peak_memory_mb=peak_memory_mb(),
        )
