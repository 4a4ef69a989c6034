"""The same training by others: a bare PyTorch loop, stock Lightning, and the usual loop of torchvision's reference scripts.

All train the net of a config on its splits, epoch by epoch, with a validation and a checkpoint after each. The bare loop and
stock Lightning have our loaders, layout and optimizer, so that only the frame differs; the reference has what most people
start from: ImageFolder, Pillow, the first torchvision transforms, NCHW, and the optimizer's defaults.
"""

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from alexlab.benchmark.interleave import Figures, Turns
from alexlab.config import build
from alexlab.config.instantiate import Config, parts
from alexlab.data.datamodule import ImageDataModule
from alexlab.data.splits import Split, Splits

EVERY = 10  # steps between two lines of a log


@dataclass(frozen=True)
class Job:
    """What everybody trains.

    Args:
        config: of `train.py`, with everything measured.
        splits: its data, packed where the config wants it.
        run_dir: for checkpoints and logs.
        ranks: processes.
        device: `cpu` or `cuda`.
    """

    config: Config
    splits: Splits
    run_dir: Path
    ranks: int = 1
    device: str = "cpu"

    def net(self) -> torch.nn.Module:
        return build.net(self.config, len(self.splits.classes))

    def optimizer(self, parameters: Any, **changed: Any) -> torch.optim.Optimizer:
        target, options = parts(self.config["optimizer"], "optimizer")
        made: torch.optim.Optimizer = target(parameters, **{**options, **changed})
        return made

    def channel_values(self) -> tuple[list[float], list[float]]:
        settings = build.data(self.config)
        return settings.per_channel(settings.mean), settings.per_channel(settings.std)

    def constants(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of levels in 0..255, (1, C, 1, 1), on the device."""
        mean, std = (
            255 * torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in self.channel_values()
        )
        return mean, std

    def autocast(self) -> torch.autocast:
        """The precision of the config."""
        bfloat16 = self.config["trainer"]["precision"] == "bf16-mixed"
        return torch.autocast(self.device, torch.bfloat16, enabled=bfloat16)


class Clock:
    """The times of one epoch, as figures of a turn."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun = False

    def epoch(self) -> None:
        """The epoch before has ended; waits for the next turn."""
        now_s = time.perf_counter()
        if self.begun:
            self.turns.next(self.figures(now_s))
        else:
            self.turns.next()
        self.begun = True
        self.start_s = time.perf_counter()
        self.train_images = self.val_images = 0

    def trained(self, images: int) -> None:
        self.trained_s, self.train_images = time.perf_counter(), images

    def validated(self, images: int) -> None:
        self.validated_s, self.val_images = time.perf_counter(), images

    def figures(self, now_s: float) -> Figures:
        return {
            "train": self.train_images / (self.trained_s - self.start_s),
            "val": self.val_images / (self.validated_s - self.trained_s),
            "epoch": (self.train_images + self.val_images) / (now_s - self.start_s),
        }


def one_device(data: ImageDataModule, device: str = "cpu") -> ImageDataModule:
    """The loaders as they are in a process that trains alone, without a Trainer."""
    data.trainer = lightning.Trainer(accelerator=device, devices=1, logger=False, enable_checkpointing=False)
    return data


def bare(job: Job, turns: Turns) -> None:
    """Nothing but PyTorch: the loop that anybody writes, on our loaders."""
    torch.manual_seed(job.config["seed"])
    net = job.net().to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = job.optimizer(net.parameters())
    data = one_device(build.datamodule(job.config, job.splits), job.device)
    loaders: Any = data.train_dataloader(), data.val_dataloader()
    mean, std = job.constants()
    clock = Clock(turns)
    for epoch in itertools.count():
        clock.epoch()
        loaders[0].batch_sampler.set_epoch(epoch)
        images_seen = 0
        net.train()
        for step, (images, labels) in enumerate(loaders[0]):
            pixels = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
            with job.autocast():
                loss = F.cross_entropy(net(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            images_seen += len(labels)
            if step % EVERY == 0:
                print(f"epoch {epoch} step {step} loss {loss.item():.4f}")
        clock.trained(images_seen)
        right = count = 0
        net.eval()
        with torch.inference_mode():
            for images, labels in loaders[1]:
                pixels = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
                right += int((net(pixels).argmax(1) == labels).sum())
                count += len(labels)
        print(f"epoch {epoch} top-1 {right / count:.4f}")
        clock.validated(count)
        save(job, net, optimizer, epoch)


def save(job: Job, net: torch.nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """A checkpoint of weights and optimizer, by `torch.save`."""
    job.run_dir.mkdir(parents=True, exist_ok=True)
    content = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
    torch.save(content, job.run_dir / "checkpoint.pth")


class Usual(Dataset[tuple[Tensor, int]]):
    """What torchvision's ImageFolder gives: Pillow's decoder, and the first version of the transforms."""

    def __init__(self, split: Split, transform: Any) -> None:
        self.samples = [
            (os.path.join(split.root, path), int(label)) for path, label in zip(split.paths, split.labels, strict=True)
        ]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(default_loader(path)), label


def usual_transforms(job: Job) -> tuple[Any, Any]:
    """Random resized crop and flip for training; resize and centre crop for validation."""
    size = job.config["data"]["image_size"]
    mean, std = job.channel_values()
    last = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    train = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *last])
    return train, transforms.Compose([transforms.Resize(round(size / 0.875)), transforms.CenterCrop(size), *last])


def reference(job: Job, turns: Turns) -> None:
    """The loop of torchvision's `references/classification/train.py`, with its defaults; on a GPU with its `--amp`."""
    torch.manual_seed(job.config["seed"])
    net, amp = job.net().to(job.device), job.device == "cuda"
    scaler = torch.amp.GradScaler(job.device, enabled=amp)
    optimizer = job.optimizer(net.parameters(), fused=None, foreach=None)
    settings = build.data(job.config)
    train, val = (
        DataLoader(
            Usual(split, transform),
            batch_size=settings.batch_size,
            shuffle=split is job.splits.train,
            drop_last=split is job.splits.train,
            num_workers=settings.workers_per_rank(1),
            multiprocessing_context="fork" if settings.workers_per_rank(1) else None,
            pin_memory=amp,
        )
        for split, transform in zip((job.splits.train, job.splits.val), usual_transforms(job), strict=True)
    )
    clock = Clock(turns)
    for epoch in itertools.count():
        clock.epoch()
        net.train()
        seen = 0
        for step, batch in enumerate(train):
            images, labels = (tensor.to(job.device) for tensor in batch)
            with torch.autocast(job.device, torch.float16, enabled=amp):
                logits = net(images)
                loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            seen += len(labels)
            top1, top5 = accuracy(logits, labels)
            line = f"epoch {epoch} step {step} loss {loss.item():.4f} top-1 {top1:.3f} top-5 {top5:.3f}"
            if step % EVERY == 0:
                print(line)
        clock.trained(seen)
        net.eval()
        sums, count = [0.0, 0.0], 0
        with torch.inference_mode():
            for batch in val:
                images, labels = (tensor.to(job.device, non_blocking=True) for tensor in batch)
                logits = net(images)
                F.cross_entropy(logits, labels).item()
                for place, value in enumerate(accuracy(logits, labels)):
                    sums[place] += value * len(labels)
                count += len(labels)
        print(f"epoch {epoch} top-1 {sums[0] / count:.4f} top-5 {sums[1] / count:.4f}")
        clock.validated(count)
        save(job, net, optimizer, epoch)


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 of a batch, each read at once."""
    answers = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return answers[:, 0].float().mean().item(), answers.any(1).float().mean().item()


class TakesTurns(Callback):
    """Makes a training by Lightning take part in a contest, on any number of ranks."""

    def __init__(self) -> None:
        self.clock = Clock(turns_of_this_process[0])

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            self.clock.epoch()
        trainer.strategy.barrier()
        self.clock.start_s = time.perf_counter()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = len(data.splits.train) // data.config.batch_size
        self.clock.trained(batches * data.config.batch_size)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.clock.validated(len(data.splits.val))


turns_of_this_process: list[Turns] = []


class Stock(lightning.LightningModule):
    """The LightningModule of every tutorial, with our net, layout and optimizer."""

    mean: Tensor
    std: Tensor

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.net = job.net().to(memory_format=torch.channels_last)
        num_classes = len(job.splits.classes)
        self.train_top1, self.val_top1 = (MulticlassAccuracy(num_classes, average="micro") for _ in range(2))
        self.val_top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro")
        mean, std = job.constants()
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
        return self.job.optimizer(self.net.parameters())


def stock(job: Job, turns: Turns) -> None:
    """Lightning as its tutorials have it: its Trainer, bar, logger and checkpoints, on one device or on several."""
    stock_with(TakesTurns, job, turns)


def stock_with(callback: Callable[[], Callback], job: Job, turns: Turns, **trainer: Any) -> None:
    """The same with a callback that takes the turns, and other keys of its Trainer."""
    turns_of_this_process[:] = [turns]
    lightning.seed_everything(job.config["seed"], verbose=False)
    data = build.datamodule(job.config, job.splits)
    keywords: dict[str, Any] = {
        "accelerator": job.config["trainer"]["accelerator"],
        "precision": job.config["trainer"]["precision"],
        "devices": job.ranks,
        "max_epochs": 1_000_000,
        "default_root_dir": job.run_dir,
        "logger": TensorBoardLogger(str(job.run_dir)),
        "callbacks": [ModelCheckpoint(), callback()],
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(**{**keywords, **trainer}).fit(Stock(job), datamodule=data)
