"""The same training in plain PyTorch: a minimal loop, and the loop of torchvision's reference scripts.

Both train the net of a workload on its splits, with a validation and a checkpoint after each epoch. The minimal loop has our data
loaders, memory layout and optimizer, so that it shows the cost of the framework; the reference has what most people start from:
ImageFolder, Pillow, the first torchvision transforms, NCHW, and the optimizer's defaults.
"""

import itertools
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from alexlab.benchmark.interleave import Turn
from alexlab.benchmark.workload import EpochTimer, Workload
from alexlab.config.data import data_config
from alexlab.data.splits import Split

LOG_EVERY = 10  # steps


def bare_loop(workload: Workload, turn: Turn) -> None:
    """Train with the fewest lines of PyTorch, on our data loaders."""
    torch.manual_seed(workload.config["seed"])
    net = workload.net().to(workload.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = workload.optimizer(net.parameters())
    datamodule = workload.datamodule()
    train_loader: Any = datamodule.train_dataloader()
    val_loader = datamodule.val_dataloader()
    mean, std = workload.mean_std_uint8()
    timer = EpochTimer(turn)
    for epoch in itertools.count():
        timer.start_epoch()
        train_loader.batch_sampler.set_epoch(epoch)
        num_images = 0
        net.train()
        for step, (images, labels) in enumerate(train_loader):
            pixels = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
            with workload.autocast():
                loss = F.cross_entropy(net(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            num_images += len(labels)
            if step % LOG_EVERY == 0:
                print(f"epoch {epoch} step {step} loss {loss.item():.4f}")
        timer.end_training(num_images)
        num_correct = num_images = 0
        net.eval()
        with torch.inference_mode():
            for images, labels in val_loader:
                pixels = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
                num_correct += int((net(pixels).argmax(1) == labels).sum())
                num_images += len(labels)
        print(f"epoch {epoch} top-1 {num_correct / num_images:.4f}")
        timer.end_validation(num_images)
        save_checkpoint(workload, net, optimizer, epoch)


def save_checkpoint(workload: Workload, net: torch.nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Save weights and optimizer with `torch.save`."""
    workload.run_dir.mkdir(parents=True, exist_ok=True)
    content = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
    torch.save(content, workload.run_dir / "checkpoint.pth")


class PillowDataset(Dataset[tuple[Tensor, int]]):
    """Images of a split as torchvision's ImageFolder returns them: decoded by Pillow, with transforms v1."""

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


def torchvision_transforms(workload: Workload) -> tuple[Any, Any]:
    """Return random resized crop and flip for training; resize and centre crop for validation."""
    size = workload.config["data"]["image_size"]
    first = [transforms.Grayscale()] if workload.config["data"]["channels"] == 1 else []
    mean, std = workload.mean_std()
    last = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    train = transforms.Compose([*first, transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *last])
    val = transforms.Compose([*first, transforms.Resize(round(size / 0.875)), transforms.CenterCrop(size), *last])
    return train, val


class TorchvisionReference:
    """The loop of torchvision's `references/classification/train.py` with its defaults; on a GPU with its `--amp`."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.device = workload, workload.device
        self.amp = self.device == "cuda"
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(workload.config["seed"])
        self.net = workload.net().to(self.device)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.amp)
        self.optimizer = workload.optimizer(self.net.parameters(), fused=None, foreach=None)
        train_transform, val_transform = torchvision_transforms(workload)
        self.train_loader = self._loader(workload.splits.train, train_transform, train=True)
        self.val_loader = self._loader(workload.splits.val, val_transform, train=False)

    def _loader(self, split: Split, transform: Any, *, train: bool) -> DataLoader[Any]:
        data = data_config(self.workload.config)
        return DataLoader(
            PillowDataset(split, transform),
            batch_size=data.batch_size,
            shuffle=train,
            drop_last=train,
            num_workers=data.workers_per_rank(1),
            multiprocessing_context="fork" if data.workers_per_rank(1) else None,
            pin_memory=self.amp,
        )

    def train(self, epoch: int) -> int:
        """Train for an epoch; return the number of images."""
        self.net.train()
        num_images = 0
        for step, batch in enumerate(self.train_loader):
            images, labels = (tensor.to(self.device) for tensor in batch)
            with torch.autocast(self.device, torch.float16, enabled=self.amp):
                logits = self.net(images)
                loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            num_images += len(labels)
            top1, top5 = accuracy(logits, labels)
            line = f"epoch {epoch} step {step} loss {loss.item():.4f} top-1 {top1:.3f} top-5 {top5:.3f}"
            if step % LOG_EVERY == 0:
                print(line)
        return num_images

    def validate(self, epoch: int) -> int:
        """Validate; return the number of images."""
        self.net.eval()
        sums, num_images = [0.0, 0.0], 0
        with torch.inference_mode():
            for batch in self.val_loader:
                images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
                logits = self.net(images)
                F.cross_entropy(logits, labels).item()
                for index, value in enumerate(accuracy(logits, labels)):
                    sums[index] += value * len(labels)
                num_images += len(labels)
        print(f"epoch {epoch} top-1 {sums[0] / num_images:.4f} top-5 {sums[1] / num_images:.4f}")
        return num_images


def torchvision_reference(workload: Workload, turn: Turn) -> None:
    """Train as `TorchvisionReference`, one epoch per turn."""
    reference = TorchvisionReference(workload)
    timer = EpochTimer(turn)
    for epoch in itertools.count():
        timer.start_epoch()
        timer.end_training(reference.train(epoch))
        timer.end_validation(reference.validate(epoch))
        save_checkpoint(workload, reference.net, reference.optimizer, epoch)


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return top-1 and top-5 of a batch; each waits for the device, as in torchvision's script."""
    hits = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return hits[:, 0].float().mean().item(), hits.any(1).float().mean().item()
