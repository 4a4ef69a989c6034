"""Updates of `run.json` during training."""

import logging
import statistics
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import Callback

from alexlab.distributed import ranks
from alexlab.records.disk_errors import RunFileWriter
from alexlab.records.provenance import peak_memory_mb
from alexlab.records.record import RunRecord
from alexlab.training.callbacks.epoch_log import EpochLog, epoch_metrics

log = logging.getLogger(__name__)


class RunRecordUpdates(RunFileWriter, Callback):
    """Callback that updates `run.json` with the last and the best epoch, the training rate and the peak memory.

    Attributes:
        start_step: optimizer step at which this attempt began.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}  # every value so far: an earlier update may have failed on a full disk
        self.start_s, self.earlier_s = time.perf_counter(), 0.0
        self.start_step = 0
        self.precision = ""  # of this attempt; before it starts, that of the earlier one

    @property
    def train_s(self) -> float:
        """Training time so far, with that of the earlier attempts up to their checkpoints."""
        return self.earlier_s + time.perf_counter() - self.start_s

    def state_dict(self) -> dict[str, Any]:
        return {"train_s": self.train_s, "precision": self.precision}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier_s, self.precision = state_dict["train_s"], state_dict["precision"]

    def _update(self, trainer: lightning.Trainer, **values: Any) -> None:
        self.known |= values
        record = RunRecord(Path(trainer.default_root_dir))
        with self.writing(record.path):
            record.update(**self.known)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Record the GPUs, the number of parameters and the precision; warn if a resumed run changes its precision."""
        self.start_s = time.perf_counter()
        before, self.precision = self.precision, str(trainer.precision)
        if before not in ("", self.precision) and trainer.is_global_zero:
            log.warning(
                "the run was trained with precision %s and continues with %s, which trainer.precision=auto means on this machine",
                *(before, self.precision),
            )
        on_gpu = isinstance(trainer.accelerator, CUDAAccelerator)
        gpu = torch.cuda.get_device_name(trainer.strategy.root_device) if on_gpu else None
        gpus = [name for name in ranks.all_gather("gpu", gpu) if name is not None]
        if not trainer.is_global_zero:
            return
        net: Any = getattr(pl_module.net, "whole", pl_module.net)  # a Tower holds half of the net
        count = sum(parameter.numel() for parameter in net.parameters())
        self._update(trainer, gpus=gpus, parameters=count, precision=self.precision)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.start_step = trainer.global_step

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
