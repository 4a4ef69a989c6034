"""The same training in Lightning as its tutorials write it, with our net, data loaders, memory layout and optimizer."""

import time
from collections.abc import Callable
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from alexlab.benchmark.interleave import Turn
from alexlab.benchmark.workload import EpochTimer, Workload
from alexlab.config import build_data
from alexlab.distributed.hardware import num_cores
from alexlab.distributed.launch import Limits, launch

FOREVER = 1_000_000  # epochs; a candidate is killed after its last turn


class EpochTurns(Callback):
    """Callback that makes each epoch of a fit one turn of a candidate, on any number of ranks.

    Args:
        turn_fd: file descriptor of the candidate's `Turn`.
    """

    def __init__(self, turn_fd: int) -> None:
        self.timer = EpochTimer(Turn(turn_fd))

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            self.timer.start_epoch()
        trainer.strategy.barrier()
        self.timer.start_s = time.perf_counter()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        batch_size = datamodule.config.batch_size
        self.timer.end_training(len(datamodule.splits.train) // batch_size * batch_size)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.timer.end_validation(len(datamodule.splits.val))


class StockModule(lightning.LightningModule):
    """Minimal LightningModule, as in Lightning's tutorials."""

    mean: Tensor
    std: Tensor

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.workload = workload
        self.net = workload.net().to(memory_format=torch.channels_last)
        num_classes = len(workload.splits.classes)
        self.train_top1, self.val_top1 = (MulticlassAccuracy(num_classes, average="micro") for _ in range(2))
        self.val_top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro")
        mean, std = workload.mean_std_uint8()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images - self.mean) / self.std
        return self.net(pixels.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.train_top1(logits, batch[1])
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/top1", self.train_top1, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits, labels = self(batch[0]), batch[1]
        self.val_top1(logits, labels)
        self.val_top5(logits, labels)
        self.log("val/loss", F.cross_entropy(logits, labels), sync_dist=True)
        self.log("val/top1", self.val_top1, prog_bar=True)
        self.log("val/top5", self.val_top5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.workload.optimizer(self.net.parameters())


def stock_lightning(
    workload: Workload, turn: Turn, *, callback: Callable[[int], Callback] = EpochTurns, **options: Any
) -> None:
    """Train with Lightning's default progress bar, logger and checkpoints, on one device or on several.

    Args:
        workload: net, data and optimizer to train.
        turn: turn of the candidate.
        callback: class whose instances take the turns; called with the file descriptor of the turn.
        options: arguments of the Trainer.
    """
    lightning.seed_everything(workload.config["seed"], verbose=False)
    node = workload.config["trainer"]
    defaults: dict[str, Any] = {
        "accelerator": node["accelerator"],
        "precision": node["precision"],
        "devices": workload.num_ranks,
        "max_epochs": FOREVER,
        "default_root_dir": workload.run_dir,
        "logger": TensorBoardLogger(str(workload.run_dir)),
        "callbacks": [ModelCheckpoint(), callback(turn.fd)],
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
    }
    datamodule = build_data.datamodule(workload.config, workload.splits)
    lightning.Trainer(**{**defaults, **options}).fit(StockModule(workload), datamodule=datamodule)


def stock_lightning_ddp(workload: Workload, turn: Turn) -> None:
    """Train with `stock_lightning` on several ranks, started as torchrun starts them."""

    def rank() -> None:
        torch.set_num_threads(max(1, num_cores() // workload.num_ranks))
        stock_lightning(workload, turn)

    launch(rank, num_ranks=workload.num_ranks, isolated=False, limits=Limits(**workload.config["elastic"]))
