"""Training workload, the same for all candidates."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from alexlab.benchmark.interleave import Figures, Turn
from alexlab.config import build, build_data
from alexlab.config.data import data_config
from alexlab.config.instantiate import Config, parts
from alexlab.data.datamodule import ImageDataModule
from alexlab.data.splits import Splits
from alexlab.records.run import Run


@dataclass(frozen=True)
class Workload:
    """A net, its data and its optimizer.

    Args:
        config: resolved config of `train.py`, with all statistics filled in.
        splits: the data, packed if the config says so.
        run_dir: folder for checkpoints and logs.
        num_ranks: number of processes.
        train: the task of `train.py`.
        device: `cpu` or `cuda`.
    """

    config: Config
    splits: Splits
    run_dir: Path
    train: Callable[[Run], Any]
    num_ranks: int = 1
    device: str = "cpu"

    def net(self) -> torch.nn.Module:
        return build.net(self.config, len(self.splits.classes))

    def optimizer(self, parameters: Any, **changes: Any) -> torch.optim.Optimizer:
        target, options = parts(self.config["optimizer"], "optimizer")
        optimizer: torch.optim.Optimizer = target(parameters, **{**options, **changes})
        return optimizer

    def datamodule(self) -> ImageDataModule:
        """Return our data module, attached to a Trainer of one device."""
        return on_one_device(build_data.datamodule(self.config, self.splits), self.device)

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, for pixels in 0..1."""
        data = data_config(self.config)
        return data.per_channel(data.mean), data.per_channel(data.std)

    def mean_std_uint8(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation for pixels in 0..255, each (1, C, 1, 1) on the device."""
        mean, std = (255 * torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in self.mean_std())
        return mean, std

    def autocast(self) -> torch.autocast:
        """Return a context of the config's precision."""
        bfloat16 = self.config["trainer"]["precision"] == "bf16-mixed"
        return torch.autocast(self.device, torch.bfloat16, enabled=bfloat16)


def on_one_device(datamodule: ImageDataModule, device: str = "cpu") -> ImageDataModule:
    """Attach a single-device Trainer, from which the data loaders read ranks and limits."""
    datamodule.trainer = lightning.Trainer(accelerator=device, devices=1, logger=False, enable_checkpointing=False)
    return datamodule


def device_time() -> float:
    """Return the seconds of a clock, once a GPU has finished what this process has started there."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class EpochTimer:
    """Images/s of whole epochs, one epoch per turn.

    Args:
        turn: turn of the candidate.
    """

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.start_s: float | None = None

    def start_epoch(self) -> None:
        """Report the epoch that has ended, if any, and wait for the next turn."""
        if self.start_s is None:
            self.turn.next()
        else:
            self.turn.next(self._figures(self.start_s, device_time()))
        self.start_s = time.perf_counter()
        self.train_images = self.val_images = 0

    def end_training(self, num_images: int) -> None:
        self.train_end_s, self.train_images = device_time(), num_images

    def end_validation(self, num_images: int) -> None:
        self.val_end_s, self.val_images = device_time(), num_images

    def _figures(self, start_s: float, end_s: float) -> Figures:
        return {
            "train": self.train_images / (self.train_end_s - start_s),
            "val": self.val_images / (self.val_end_s - self.train_end_s),
            "epoch": (self.train_images + self.val_images) / (end_s - start_s),
        }
