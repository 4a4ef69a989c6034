"""LightningDataModule: data loaders over the splits of a dataset."""

import gc
import os
import sys
from collections.abc import Callable
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
from alexlab.data.dataset import ImageDataset, MapDataset, PaddedDataset, SeededDataset, ViewReader
from alexlab.data.limits import num_eval_images
from alexlab.data.prefetch import DevicePrefetcher, PostProcess, PrefetchLoader
from alexlab.data.samplers import EvalBatchSampler, TrainBatchSampler, data_ranks, stratified_sample
from alexlab.data.splits import Split, Splits
from alexlab.data.streaming.reader import ShardedImages
from alexlab.data.transforms import set_epoch, shared_crops
from alexlab.data.unreadable import UnreadableLog
from alexlab.distributed.hardware import die_with_parent
from alexlab.distributed.signals import ignore_first_sigterm
from alexlab.errors import ConfigError


class ImageDataModule(lightning.LightningDataModule):
    """Data loaders of (images, labels): uint8 (N, C, H, W) and int64 (N,), where a label below 0 is not counted.

    Args:
        config: the config node `data`.
        splits: the splits to load.
        train_transform, eval_transform: functions from a uint8 image (C, H, W) to one of the network's input size.
        seed: seed of the order and the augmentation.
        unreadable: log for images that cannot be read if `config.on_error` is skip.
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
        self.unreadable = unreadable if config.on_error == "skip" else None
        self.resume_at = (0, 0)  # epoch, and batch of this rank, at which a resumed run begins
        self.early_loaders: dict[str, DataLoader[Any]] = {}  # started by start_workers and not yet requested
        self.forked_loaders: list[DataLoader[Any]] = []  # all that start_workers has started

    def dataset(self, split: Split, transform: Callable[[Tensor], Tensor]) -> ImageDataset:
        """Return the dataset of a split."""
        return ImageDataset(split, ViewReader(transform, self.config.decoding), unreadable=self.unreadable)

    def start_workers(self) -> None:
        """Fork the DataLoader workers for training and validation now, while this process uses little memory.

        A page that this process modifies after the fork is duplicated for as long as its children live: processes forked
        after the first epoch hold a second copy of weights, gradients and activations.
        """
        if not self.config.workers_per_rank(self.trainer.num_devices):  # type: ignore[union-attr]
            return
        self.early_loaders = {"train": self.train_dataloader(), "val": self.val_dataloader()}
        self.forked_loaders = list(self.early_loaders.values())
        for loader in self.forked_loaders:
            assert isinstance(loader.batch_sampler, TrainBatchSampler | EvalBatchSampler)
            loader.batch_sampler.paused = True  # nothing is prefetched
            with torch.random.fork_rng(devices=[]):  # a loader draws a base seed, which our datasets do not use
                iter(loader)
            loader.batch_sampler.paused = False

    def stop_workers(self) -> None:
        """Terminate the DataLoader workers that are still running.

        A failed Trainer leaves them running. If they are garbage collected with it, their queues may be closed first, which
        raises in a thread.
        """
        for loader in self.forked_loaders:
            compat.shut_down_workers(loader)
        self.early_loaders, self.forked_loaders = {}, []

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the augmented training batches of this rank."""
        assert self.trainer is not None
        if "train" in self.early_loaders:
            return self.early_loaders.pop("train")
        dataset, post_process = self._dataset(self.splits.train, self.train_transform)
        num_ranks, rank = data_ranks(self.trainer)
        images = self.splits.train.images
        sharded = images if isinstance(images, ShardedImages) else None
        sampler = TrainBatchSampler(
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
        # Lightning sets the epoch of a resumed run only after the DataLoader workers have begun to prefetch.
        sampler.set_epoch(max(self.resume_at[0], self.trainer.current_epoch))
        on_epoch = partial(_begin_epoch, self.train_transform, sampler, sharded)
        shared = shared_crops(self.train_transform)
        seeded = SeededDataset(dataset, seed=self.seed, on_epoch=on_epoch, shared=shared)
        return self._loader(seeded, sampler, post_process)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return this rank's batches of the validation split."""
        assert self.trainer is not None
        limit = self.trainer.limit_val_batches
        return self.early_loaders.pop("val", None) or self.eval_loader(self.splits.val, limit=limit)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return this rank's batches of the test split.

        Raises:
            ConfigError: if the dataset has no test split.
        """
        if self.splits.test is None:
            raise ConfigError(f"{self.config.location} has no test split")
        assert self.trainer is not None
        return self.eval_loader(self.splits.test, limit=self.trainer.limit_test_batches)

    def eval_loader(
        self, split: Split, transform: Callable[[Tensor], Tensor] | None = None, *, limit: float = 1.0
    ) -> DataLoader[Any]:
        """Return this rank's batches of a split, in which each image occurs once over all ranks.

        Args:
            split: the split to load.
            transform: replacement for `eval_transform`; it may return several views of an image, (V, C, H, W).
            limit: the Trainer's limit on the batches. They hold a fixed stratified sample on any number of devices: files are
                sorted by class, so the first batches would hold one class.
        """
        assert self.trainer is not None
        dataset, post_process = self._dataset(split, transform or self.eval_transform)
        num_ranks, rank = data_ranks(self.trainer)
        count = num_eval_images(split, self.config, limit)
        sampler = EvalBatchSampler(
            len(dataset),
            batch_size=self.config.batch_size,
            num_ranks=num_ranks,
            rank=rank,
            sample=None if count == len(split) else stratified_sample(split.labels, count, seed=self.config.split_seed),
        )
        return self._loader(PaddedDataset(dataset), sampler, post_process)

    def _dataset(self, split: Split, transform: Callable[[Tensor], Tensor]) -> tuple[MapDataset, PostProcess | None]:
        """Return the dataset that the DataLoader workers read, and the post-processing of its batches on the device."""
        if self.config.cache != "device" or transform not in (self.train_transform, self.eval_transform):
            return self.dataset(split, transform), None
        assert isinstance(split.images, PackedImages)
        crops = CropSampler(transform, split.images.pixels.shape[1])
        return CropDataset(split, crops, self.unreadable), DeviceCropper(split.images, crops)

    def _loader(
        self, dataset: Any, sampler: TrainBatchSampler | EvalBatchSampler, post_process: PostProcess | None
    ) -> DataLoader[Any]:
        assert self.trainer is not None
        num_workers = self.config.workers_per_rank(self.trainer.num_devices)
        device = self.trainer.strategy.root_device
        return PrefetchLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            multiprocessing_context="fork" if num_workers else None,
            worker_init_fn=partial(init_worker, os.getpid()),
            collate_fn=default_collate if post_process else collate,
            prefetcher=DevicePrefetcher(device, post_process) if post_process or device.type == "cuda" else None,
            pin_memory=isinstance(self.trainer.accelerator, CUDAAccelerator),
        )


def init_worker(parent: int, worker: int) -> None:
    """Prepare a DataLoader worker: it must die with its parent, because it holds the parent's lock on the run folder too.

    Args:
        parent: pid of the parent.
        worker: id of the worker, as DataLoader passes it.
    """
    die_with_parent(parent)
    gc.freeze()  # a collection would write to all objects of the parent, and so copy 20 MB of its pages
    ignore_first_sigterm(worker)
    sys.excepthook = _log_unless_disconnected


def _log_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error, unless another DataLoader worker has died: the parent reports that."""
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _begin_epoch(
    transform: Callable[[Tensor], Tensor], sampler: TrainBatchSampler, sharded: ShardedImages | None, epoch: int
) -> None:
    set_epoch(transform, epoch)
    if sharded is not None:
        sharded.set_shard_order(sampler.shard_order(epoch))


def collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Collate images ([V,] C, H, W) and labels into a batch with the memory format of the first image.

    Images that are only cropped are channels-last, as the decoder and the pack return them and as the network reads them.
    Images that torchvision has resized are not, and transposing them would limit a DataLoader worker to 9,000 images/s.
    """
    if items[0][0].stride(-3) != 1:
        images, labels = default_collate(items)
        return images, labels
    images, labels = default_collate([(image.movedim(-3, -1), label) for image, label in items])
    return images.movedim(-1, -3), labels
