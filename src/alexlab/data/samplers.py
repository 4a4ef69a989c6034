"""Which image is read when, by which rank: functions of the seed, the epoch and the position, with no state to lose.

A run on two devices reads the same global batches as a run on one, and every random draw of an image is a function of
(seed, epoch, index): the number of devices and of loader workers changes nothing.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    import lightning

PADDING = -1  # the label of an item that fills up a rank's share; no score counts it
GOLDEN = (5**0.5 - 1) / 2
UNREADABLE = -2  # the label of an image that cannot be read, where that is no error


def derived_seed(*numbers: int) -> int:
    """A seed of 63 bits from whole numbers; other numbers give an unrelated one."""
    digest = hashlib.blake2b(struct.pack(f"{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def data_ranks(trainer: "lightning.Trainer") -> tuple[int, int]:
    """Return the number of ranks that divide the images, and this process's rank among them.

    Both ranks of the two-tower strategy see every image: it sets `data_ranks` to (1, 0).
    """
    ranks: tuple[int, int] = getattr(trainer.strategy, "data_ranks", (trainer.world_size, trainer.global_rank))
    return ranks


class MapDataset(Protocol):
    """Anything with a length and items by position."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


class SeededDataset:
    """Items by (epoch, index): what is random in an item is drawn from a generator seeded by (seed, epoch, index).

    Args:
        dataset: the items.
        seed: of the run.
        on_epoch: called, in the process that reads, with each epoch that begins.
    """

    def __init__(self, dataset: MapDataset, *, seed: int, on_epoch: Callable[[int], None] | None = None) -> None:
        self.dataset = dataset
        self.seed = seed
        self.on_epoch = on_epoch
        self.epoch: int | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[tuple[Any, int]]:
        """The items of a batch; a loader asks for all of them at once."""
        items = []
        with torch.random.fork_rng(devices=[]):
            for epoch, index in keys:
                if epoch != self.epoch and self.on_epoch is not None:
                    self.on_epoch(epoch)
                self.epoch = epoch
                torch.default_generator.manual_seed(derived_seed(self.seed, epoch, index))
                items.append(self.dataset[index])
        return items


class PaddedDataset:
    """Items by position, where the position -1 gives an item that no score counts: image 0 with the label -1."""

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.dataset[max(index, 0)]
        return image, label if index >= 0 else PADDING


class TrainBatchSampler:
    """The training batches of one rank: lists of (epoch, index). The last, incomplete global batch is left out.

    Sharded images are read shard by shard, `shuffle_shards` of them shuffled together: the shard at position p of an epoch is
    read while the shards at positions p to p + shuffle_shards begin. The images of a global batch are sorted before they are
    divided among the ranks, so that most shards are read by one rank only, and fetched by one node.

    Args:
        labels: the label of each image.
        batch_size: images of one optimizer step, over all ranks and accumulated batches.
        num_ranks, rank: how many processes share a batch, and which one this is.
        accumulation_steps: batches that one optimizer step adds up.
        seed: of the order.
        balanced: draw images with replacement so that every class is equally likely, instead of each image once.
        overfit: the same order and the same augmentation in every epoch, for learning a few batches by heart.
        shard_ids: of each image the number of its shard; None where any image is at hand.
        shuffle_shards: shards whose images are mixed.
        resume_at: the epoch and the batch of this rank that a resumed run begins with.
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
        self.seed = seed
        self.balanced, self.overfit = balanced, overfit
        self.shard_ids, self.shuffle_shards = shard_ids, shuffle_shards
        self.resume_at = resume_at
        self.epoch = resume_at[0]
        self.paused = False  # gives nothing
        self.sampler = self  # Lightning looks for set_epoch at batch_sampler.sampler, not at the batch sampler

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass; Lightning calls it before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size * self.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if self.paused:
            return
        # No state is used up: a loader with workers asks for its first iterator twice. The length stays that of an epoch.
        begun = self.resume_at[1] if self.epoch == self.resume_at[0] else 0
        yield from self.batches(range(begun, len(self)))

    def batches(self, numbers: range) -> Iterator[list[tuple[int, int]]]:
        """Some batches of the epoch that was set last."""
        drawn = 0 if self.overfit else self.epoch
        order = self._order(drawn)
        share = self.batch_size // (self.num_ranks * self.accumulation_steps)
        for number in numbers:
            start = (number * self.num_ranks + self.rank) * share
            yield [(drawn, int(index)) for index in order[start : start + share]]

    def shard_order(self, drawn: int) -> np.ndarray:
        """The numbers of the shards that this rank reads in an epoch, as keys name it, by their first image."""
        assert self.shard_ids is not None
        share = self.batch_size // (self.num_ranks * self.accumulation_steps)
        own = self._order(drawn).reshape(-1, self.num_ranks, share)[:, self.rank].reshape(-1)
        shards, firsts = np.unique(self.shard_ids[own], return_index=True)
        return shards[firsts.argsort()]

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(derived_seed(self.seed, epoch)))
        if self.shard_ids is not None:
            places = generator.permutation(self.shard_ids.max() + 1)[self.shard_ids]
            mixed = np.argsort(places + self.shuffle_shards * generator.random(len(places)), kind="stable")
            steps = mixed[: len(mixed) // self.batch_size * self.batch_size].reshape(-1, self.batch_size)
            # Multiples of the golden ratio: of any shards that follow each other they divide the circle evenly.
            ranks = (places * GOLDEN % 1.0)[steps].argsort(axis=1, kind="stable")
            return np.take_along_axis(steps, ranks, axis=1).reshape(-1)
        if not self.balanced:
            return generator.permutation(len(self.labels))
        weights = 1.0 / np.bincount(self.labels)[self.labels]
        return generator.choice(len(self.labels), len(self.labels), p=weights / weights.sum())


def stratified_sample(labels: Sequence[int] | np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Return the positions of `count` random images in ascending order, of each class as many as its share, within one.

    Args:
        labels: of all images.
        count: number of images to draw.
        seed: another one draws other images.
    """
    generator = np.random.Generator(np.random.Philox(derived_seed(seed)))
    drawn = generator.permutation(len(labels))
    drawn = drawn[np.asarray(labels)[drawn].argsort(kind="stable")]  # class after class
    own = np.asarray(labels)[drawn]
    sizes = np.bincount(own)
    within = np.arange(len(own)) - (sizes.cumsum() - sizes)[own]
    # The images of each class are spread evenly over 0..1, from a random start: any part from 0 on has its share of each.
    places = (within + generator.random(len(sizes))[own]) / sizes[own]
    return np.sort(drawn[places.argsort(kind="stable")[:count]])


def num_limited_batches(num_batches: int, limit: float) -> int:
    """Return how many batches a limit of Lightning's Trainer leaves: a number of them (int) or a fraction (float)."""
    return min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)


class EvalBatchSampler:
    """The batches of one rank in an evaluation: every image once over all ranks, padded so that all ranks take as many steps.

    Args:
        length: number of images.
        batch_size: images of one step, over all ranks.
        num_ranks, rank: how many processes share the images, and which one this is.
        sample: positions of the only images that are scored. The length stays that of all of them, since Lightning takes its
            limit of it.
    """

    def __init__(
        self, length: int, *, batch_size: int, num_ranks: int = 1, rank: int = 0, sample: np.ndarray | None = None
    ) -> None:
        self.length, self.sample = length, sample
        self.share = max(1, batch_size // num_ranks)
        self.num_ranks, self.rank = num_ranks, rank
        self.paused = False  # gives nothing

    def __len__(self) -> int:
        return -(-self.length // (self.num_ranks * self.share))

    def __iter__(self) -> Iterator[list[int]]:
        if self.paused:
            return
        chosen = np.arange(self.length) if self.sample is None else self.sample
        own = chosen[self.rank :: self.num_ranks].tolist()
        longest = -(-len(chosen) // self.num_ranks)
        padded = [*own, *[PADDING] * (longest - len(own))]
        for start in range(0, longest, self.share):
            yield padded[start : start + self.share]
