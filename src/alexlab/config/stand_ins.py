"""Substitutes for the net, the data and the checkpoints of a run, for its rehearsal."""

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn


class StandIn(nn.Module):
    """Net of a convolution, a norm and a linear layer, with a parameter of each kind."""

    def __init__(self, channels: int, num_outputs: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 2, 3, padding=1), nn.BatchNorm2d(2))
        self.classifier = nn.Linear(2, num_outputs)
        self.to(memory_format=torch.channels_last)  # like the nets of runs

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


class StandInData(lightning.LightningDataModule):
    """Data module with batches of two images of 4 x 4 pixels."""

    def __init__(self, counts: dict[str, int], *, channels: int, num_classes: int) -> None:
        super().__init__()
        self.loader = {name: Batches(count, channels, num_classes) for name, count in counts.items()}

    def train_dataloader(self) -> Any:
        return self.loader["train"]

    def val_dataloader(self) -> Any:
        return self.loader["val"]

    def test_dataloader(self) -> Any:
        return self.loader["test"]


class Batches:
    """Loader of `count` batches of grey images."""

    def __init__(self, count: int, channels: int, num_classes: int) -> None:
        self.count = count
        self.dataset = range(2 * count)
        self.batch = torch.full((2, channels, 4, 4), 100, dtype=torch.uint8), torch.tensor([0, num_classes - 1])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.count)


class Started(Exception):  # noqa: N818 - not an error
    """Signal that a part of a run started successfully."""


class StopAfterStart(Callback):
    """Callback that stops a run of full length after its first batch, when Lightning has checked the lengths of the loaders."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx:
            raise Started

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            raise Started

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        raise Started

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        raise Started


class NoCheckpoints(CheckpointIO):
    """Checkpoint plugin that writes nothing."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        pass

    def load_checkpoint(self, *args: Any, **options: Any) -> dict[str, Any]:
        raise FileNotFoundError("a rehearsal has no checkpoint")

    def remove_checkpoint(self, path: Any) -> None:
        pass
