"""Batch samplers without state: the order of the images is a function of seed, epoch and position.

A run on two devices reads the same global batches as a run on one, and the number of devices and of loader workers changes
no random draw.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from alexlab.data.labels import PADDING

if TYPE_CHECKING:
    import lightning

GOLDEN_RATIO = (5**0.5 - 1) / 2


def derived_seed(*numbers: int) -> int:
    """Return a 63-bit seed from integers; different numbers give unrelated seeds."""
    digest = hashlib.blake2b(struct.pack(f"{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def data_ranks(trainer: "lightning.Trainer") -> tuple[int, int]:
    """Return the number of ranks that divide the images, and this process's rank among them.

    Both ranks of the two-tower strategy see every image: it sets `data_ranks` to (1, 0).
    """
    ranks: tuple[int, int] = getattr(trainer.strategy, "data_ranks", (trainer.world_size, trainer.global_rank))
    return ranks


class TrainBatchSampler:
    """Training batches of one rank, as lists of (epoch, index, position in the epoch).

    An incomplete global batch at the end is dropped.

    Sharded images are read shard by shard, `shuffle_shards` of them shuffled together: the shard at position p of an epoch is
    read while the shards at positions p to p + shuffle_shards begin. The images of a global batch are sorted before they are
    divided among the ranks, so that most shards are read by one rank only, and fetched by one node.

    Args:
        labels: label of each image.
        batch_size: images of one optimizer step, over all ranks and accumulated batches.
        num_ranks: number of ranks that divide a batch.
        rank: rank of this process, from 0.
        accumulation_steps: batches that are accumulated for one optimizer step.
        seed: seed of the order.
        balanced: draw images with replacement such that every class is equally likely, instead of each image once.
        overfit: repeat the order and the augmentation of the first epoch, for `trainer.overfit_batches`.
        shard_ids: shard number of each image; None if images can be read in any order.
        shuffle_shards: number of shards whose images are shuffled together.
        resume_at: epoch, and batch of this rank, at which a resumed run begins.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        num_ranks: int = 1,
        rank: int = 0,
        accumulation_steps: int = 1,
        seed: int = 0,
        balanced: bool = False,
        overfit: bool = False,
        shard_ids: np.ndarray | None = None,
        shuffle_shards: int = 1,
        resume_at: tuple[int, int] = (0, 0),
    ) -> None:
        assert batch_size % (num_ranks * accumulation_steps) == 0, "checked when the run is built"
        self.labels = np.asarray(labels)
        self.batch_size = batch_size
        self.num_ranks, self.rank, self.accumulation_steps = num_ranks, rank, accumulation_steps
        self.rank_batch_size = batch_size // (num_ranks * accumulation_steps)
        self.seed = seed
        self.balanced, self.overfit = balanced, overfit
        self.shard_ids, self.shuffle_shards = shard_ids, shuffle_shards
        self.resume_at = resume_at
        self.epoch = resume_at[0]
        self.paused = False  # yields nothing
        self.sampler = self  # Lightning looks for set_epoch at batch_sampler.sampler, not at the batch sampler

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls it before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size * self.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        if self.paused:
            return
        # The start is not consumed, because a loader with workers creates its first iterator twice. The length remains that of
        # an epoch.
        start = self.resume_at[1] if self.epoch == self.resume_at[0] else 0
        yield from self.batches(range(start, len(self)))

    def batches(self, numbers: range) -> Iterator[list[tuple[int, int, int]]]:
        """Yield some batches of the current epoch, by their numbers within this rank."""
        epoch = 0 if self.overfit else self.epoch
        order = self._order(epoch)
        for number in numbers:
            start = (number * self.num_ranks + self.rank) * self.rank_batch_size
            indices = order[start : start + self.rank_batch_size].tolist()
            yield [(epoch, index, position) for position, index in enumerate(indices, start)]

    def shard_order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the shards that this rank reads in an epoch, in the order of their first image."""
        assert self.shard_ids is not None
        images = self._order(epoch).reshape(-1, self.num_ranks, self.rank_batch_size)[:, self.rank].reshape(-1)
        shards, first_positions = np.unique(self.shard_ids[images], return_index=True)
        return shards[first_positions.argsort()]

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(derived_seed(self.seed, epoch)))
        if self.shard_ids is not None:
            return self._sharded_order(self.shard_ids, generator)
        if not self.balanced:
            return generator.permutation(len(self.labels))
        weights = 1.0 / np.bincount(self.labels)[self.labels]
        return generator.choice(len(self.labels), len(self.labels), p=weights / weights.sum())

    def _sharded_order(self, shard_ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        positions = generator.permutation(shard_ids.max() + 1)[shard_ids]  # of each image's shard in the epoch
        shuffled = np.argsort(positions + self.shuffle_shards * generator.random(len(positions)), kind="stable")
        steps = shuffled[: len(shuffled) // self.batch_size * self.batch_size].reshape(-1, self.batch_size)
        # Multiples of the golden ratio divide the circle evenly for any run of consecutive shards, so each rank gets its share.
        by_shard = (positions * GOLDEN_RATIO % 1.0)[steps].argsort(axis=1, kind="stable")
        return np.take_along_axis(steps, by_shard, axis=1).reshape(-1)


class EvalBatchSampler:
    """Evaluation batches of one rank: every image once over all ranks, padded such that all ranks take the same steps.

    Args:
        length: number of images.
        batch_size: images of one step, over all ranks.
        num_ranks: number of ranks that divide the images.
        rank: rank of this process, from 0.
        sample: indices of the only images to evaluate. The length remains that of all images, because Lightning applies its
            limit to it.
    """

    def __init__(
        self, length: int, *, batch_size: int, num_ranks: int = 1, rank: int = 0, sample: np.ndarray | None = None
    ) -> None:
        self.length, self.sample = length, sample
        self.rank_batch_size = max(1, batch_size // num_ranks)
        self.num_ranks, self.rank = num_ranks, rank
        self.paused = False  # yields nothing

    def __len__(self) -> int:
        return -(-self.length // (self.num_ranks * self.rank_batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        if self.paused:
            return
        chosen = np.arange(self.length) if self.sample is None else self.sample
        indices = chosen[self.rank :: self.num_ranks].tolist()
        longest = -(-len(chosen) // self.num_ranks)
        padded = [*indices, *[PADDING] * (longest - len(indices))]
        for start in range(0, longest, self.rank_batch_size):
            yield padded[start : start + self.rank_batch_size]


def stratified_sample(labels: Sequence[int] | np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Return the sorted indices of `count` random images, in which each class has its share to within one image.

    Args:
        labels: label of each image.
        count: number of images to draw.
        seed: seed of the draw.
    """
    generator = np.random.Generator(np.random.Philox(derived_seed(seed)))
    indices = generator.permutation(len(labels))
    indices = indices[np.asarray(labels)[indices].argsort(kind="stable")]  # class by class
    classes = np.asarray(labels)[indices]
    sizes = np.bincount(classes)
    ranks = np.arange(len(classes)) - (sizes.cumsum() - sizes)[classes]  # of each image within its class
    # The images of each class are spread evenly over 0..1 from a random start, so every prefix has its share of each class.
    positions = (ranks + generator.random(len(sizes))[classes]) / sizes[classes]
    return np.sort(indices[positions.argsort(kind="stable")[:count]])
