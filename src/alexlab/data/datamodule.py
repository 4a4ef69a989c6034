"""The LightningDataModule: loaders over the splits of a folder."""

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import lightning
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from alexlab import compat
from alexlab.data.cache.on_device import CropDataset, CropSampler, DeviceCropper
from alexlab.data.cache.pack import PackedImages
from alexlab.data.config import DataConfig
from alexlab.data.dataset import ImageDataset
from alexlab.data.prefetch import DevicePrefetcher, PostProcess, PrefetchLoader
from alexlab.data.samplers import (
    EvalBatchSampler,
    MapDataset,
    PaddedDataset,
    SeededDataset,
    TrainBatchSampler,
    data_ranks,
    num_limited_batches,
    stratified_sample,
)
from alexlab.data.splits import Split, Splits
from alexlab.data.streaming.reader import ShardedImages
from alexlab.data.unreadable import UnreadableLog
from alexlab.distributed.hardware import die_with_parent
from alexlab.distributed.signals import ignore_first_sigterm
from alexlab.errors import ConfigError


class ImageDataModule(lightning.LightningDataModule):
    """Loaders that give (images, labels): uint8 (N, C, H, W) and int64 (N,), where a label below 0 is padding.

    Args:
        config: the settings.
        splits: the files.
        train_transform, eval_transform: from a uint8 image (C, H, W) to one of the size that the net takes.
        seed: of the order and of the augmentation.
        unreadable: takes the images that cannot be read, where `config.on_error` is skip.

    Raises:
        ConfigError: from `test_dataloader`, when there is no test split.
    """

    def __init__(
        self,
        config: DataConfig,
        splits: Splits,
        *,
        train_transform: Callable[[Tensor], Tensor],
        eval_transform: Callable[[Tensor], Tensor],
        seed: int,
        unreadable: UnreadableLog | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.splits = splits
        self.train_transform, self.eval_transform = train_transform, eval_transform
        self.seed = seed
        self.resume_at = (0, 0)  # the epoch and the batch that this process begins with; a resumed run begins later
        self.unreadable = unreadable if config.on_error == "skip" else None
        self.early_loaders: dict[
            str, DataLoader[Any]
        ] = {}  # loaders whose processes run already, for who asks for them
        self.forked_loaders: list[DataLoader[Any]] = []  # the same, also when they were asked for

    def dataset(self, split: Split, transform: Callable[[Tensor], Tensor]) -> ImageDataset:
        """A split as a data set."""
        return ImageDataset(split, transform=transform, decoding=self.config.decoding, unreadable=self.unreadable)

    def _parts(self, split: Split, transform: Callable[[Tensor], Tensor]) -> tuple[MapDataset, PostProcess | None]:
        """What the loader processes read, and what is made of it on the device."""
        if self.config.cache != "device" or transform not in (self.train_transform, self.eval_transform):
            return self.dataset(split, transform), None
        assert isinstance(split.images, PackedImages)
        crops = CropSampler(transform, split.images.pixels.shape[1])
        return CropDataset(split, crops, self.unreadable), DeviceCropper(split.images, crops)

    def start_workers(self) -> None:
        """Forks the loader processes of the training and of the validation now, while this process holds little memory.

        A page that this process changes after the fork is kept a second time for its children: processes that are forked
        after the first epoch hold a second copy of weights, gradients and activations.
        """
        if not self.config.workers_per_rank(self.trainer.num_devices):  # type: ignore[union-attr]
            return
        self.early_loaders = {"train": self.train_dataloader(), "val": self.val_dataloader()}
        self.forked_loaders = list(self.early_loaders.values())
        for loader in self.forked_loaders:
            assert isinstance(loader.batch_sampler, TrainBatchSampler | EvalBatchSampler)
            loader.batch_sampler.paused = True  # nothing is prefetched
            with torch.random.fork_rng(devices=[]):  # a loader draws a seed, which none of ours needs
                iter(loader)
            loader.batch_sampler.paused = False

    def stop_workers(self) -> None:
        """Ends the loader processes that still run: a Trainer that fails leaves them, and when they are collected with it their
        queues may be closed first, which is an error in a thread."""
        for loader in self.forked_loaders:
            compat.shut_down_workers(loader)
        self.early_loaders, self.forked_loaders = {}, []

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of this rank, augmented."""
        assert self.trainer is not None
        if "train" in self.early_loaders:
            return self.early_loaders.pop("train")
        dataset, finish = self._parts(self.splits.train, self.train_transform)
        num_ranks, rank = data_ranks(self.trainer)
        stored = self.splits.train.images
        sharded = stored if isinstance(stored, ShardedImages) else None
        batches = TrainBatchSampler(
            self.splits.train.labels,
            batch_size=self.config.batch_size,
            num_ranks=num_ranks,
            rank=rank,
            accumulation_steps=self.trainer.accumulate_grad_batches,
            seed=self.seed,
            balanced=self.config.sampler == "balanced",
            overfit=self.trainer.overfit_batches > 0,  # type: ignore[attr-defined]
            shard_ids=None if sharded is None else sharded.shard,
            shuffle_shards=1 if sharded is None else sharded.shuffle_shards,
            resume_at=self.resume_at,
        )
        # Lightning tells the epoch of a resumed run only after the loader processes have begun to read ahead.
        batches.set_epoch(max(self.resume_at[0], self.trainer.current_epoch))
        follow = None if sharded is None else partial(_follow, sharded, batches)
        return self._loader(SeededDataset(dataset, seed=self.seed, on_epoch=follow), batches, finish)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of this rank's share of the validation split."""
        assert self.trainer is not None
        limit = self.trainer.limit_val_batches
        return self.early_loaders.pop("val", None) or self.eval_loader(self.splits.val, limit=limit)

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of this rank's share of the test split."""
        if self.splits.test is None:
            raise ConfigError(f"{self.config.location} has no test split")
        assert self.trainer is not None
        return self.eval_loader(self.splits.test, limit=self.trainer.limit_test_batches)

    def eval_loader(
        self, split: Split, transform: Callable[[Tensor], Tensor] | None = None, *, limit: float = 1.0
    ) -> DataLoader[Any]:
        """Return batches of this rank's share of a split, each image once over all ranks.

        Args:
            split: the files.
            transform: in the place of `eval_transform`; it may give several views of an image, (V, C, H, W).
            limit: batches that the Trainer takes. They hold a fixed sample, on any number of devices: files are sorted by
                class, so the first batches would hold one class.
        """
        assert self.trainer is not None
        dataset, finish = self._parts(split, transform or self.eval_transform)
        num_ranks, rank = data_ranks(self.trainer)
        count = num_eval_images(split, self.config, limit)
        batches = EvalBatchSampler(
            len(dataset),
            batch_size=self.config.batch_size,
            num_ranks=num_ranks,
            rank=rank,
            sample=None if count == len(split) else stratified_sample(split.labels, count, seed=self.config.split_seed),
        )
        return self._loader(PaddedDataset(dataset), batches, finish)

    def _loader(
        self, dataset: Any, batches: TrainBatchSampler | EvalBatchSampler, finish: PostProcess | None
    ) -> DataLoader[Any]:
        assert self.trainer is not None
        workers = self.config.workers_per_rank(self.trainer.num_devices)
        device = self.trainer.strategy.root_device
        return PrefetchLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=partial(init_worker, os.getpid()),
            collate_fn=default_collate if finish else collate,
            to_device=DevicePrefetcher(device, finish) if finish or device.type == "cuda" else None,
            pin_memory=isinstance(self.trainer.accelerator, CUDAAccelerator),
        )


def num_eval_images(split: Split, data: DataConfig, limit: float) -> int:
    """Return how many images of a split are scored where the Trainer limits the batches."""
    return min(len(split), data.batch_size * num_limited_batches(-(-len(split) // data.batch_size), limit))


def init_worker(parent: int, number: int) -> None:
    """What a loader process does first: it ends when its parent is killed, whose lock on the run folder it holds too.

    Args:
        parent: the parent's process number.
        number: of the worker, as a DataLoader tells it.
    """
    die_with_parent(parent)
    ignore_first_sigterm(number)
    sys.excepthook = _hush


def _hush(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Leave it to the parent to report another loader process that has ended while it was given a batch."""
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _follow(images: ShardedImages, batches: TrainBatchSampler, epoch: int) -> None:
    images.set_shard_order(batches.shard_order(epoch))


def collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Images ([V,] C, H, W) with their labels as one batch that lies in memory as the first of them does.

    What is only cut lies channels last, as it comes from the decoder or the pack and as the net takes it; what torchvision has
    resized does not, and one loader process would transpose 9,000 images/s.
    """
    if items[0][0].stride(-3) != 1:
        images, labels = default_collate(items)
        return images, labels
    images, labels = default_collate([(image.movedim(-3, -1), label) for image, label in items])
    return images.movedim(-1, -3), labels


def check_batch_size(data: DataConfig, splits: Splits, *, num_ranks: int, accumulation_steps: int) -> None:
    """Raises ConfigError when the global batch cannot be shared out."""
    if data.batch_size % (num_ranks * accumulation_steps):
        raise ConfigError(
            "data.batch_size is the global batch and must be divisible by trainer.devices x "
            f"trainer.accumulate_grad_batches; got {data.batch_size} and {num_ranks} x {accumulation_steps}"
        )
    if data.batch_size > len(splits.train):
        raise ConfigError(
            f"data.batch_size must not exceed the {len(splits.train)} training images of {data.location}; "
            f"got {data.batch_size}"
        )


def check_limits(trainer: Mapping[str, Any], data: DataConfig, splits: Splits) -> None:
    """Raise ConfigError where a fraction of the batches is less than one batch.

    Args:
        trainer: the `trainer` node.
        data: the settings.
        splits: the files.
    """
    for name, split in splits.items():
        key = "overfit_batches" if trainer["overfit_batches"] and name != "test" else f"limit_{name}_batches"
        all_batches = len(split) // data.batch_size if name == "train" else -(-len(split) // data.batch_size)
        all_batches *= trainer["accumulate_grad_batches"] if name == "train" else 1
        if isinstance(trainer[key], float) and trainer[key] > 0 and not num_limited_batches(all_batches, trainer[key]):
            raise ConfigError(
                f"trainer.{key} must leave a batch: {trainer[key]:g} of {all_batches} {name} batches is less than one. "
                f"trainer.{key}=1 takes one batch"
            )
