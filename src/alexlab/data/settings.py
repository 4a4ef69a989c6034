"""The keys of the `data` node: what is read, how it is divided and how it is handed to the net. Imports no torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from alexlab.data.digits import write_digits
from alexlab.data.folder import Splits, find_splits
from alexlab.errors import ConfigError
from alexlab.machine import num_cores

MAKERS = {"digits": write_digits}


@dataclass(frozen=True, kw_only=True)
class Data:
    """One data set and the way it is fed.

    Args:
        root: the folder, in one of the layouts of `alexlab.data.folder`, relative to the working directory.
        image_size: height and width of what the net gets, in pixels.
        channels: 3 for RGB, 1 for grey.
        mean, std: of the values in [0, 1], for each channel; with one channel, three numbers are averaged.
        batch_size: images of one optimizer step, over all devices and accumulated batches.
        num_workers: loader processes of each device; None takes one for each core that a device has, at most 8.
        val_fraction, test_fraction: parts of each class that are set aside where the folder has no such split.
        val_split: `val`, or `test` to validate on the test split.
        split_seed: another number divides an undivided folder in another way.
        sampler: `shuffle`, every image once an epoch; `balanced`, with replacement, every class equally often.
        make: writes the data set when `root` is not there: `digits`, or None.
    """

    root: str
    image_size: int
    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    batch_size: int
    num_workers: int | None = None
    val_fraction: float = 0.2
    test_fraction: float = 0.0
    val_split: str = "val"
    split_seed: int = 0
    sampler: str = "shuffle"
    make: str | None = None

    def __post_init__(self) -> None:
        if not self.root:
            raise ConfigError("data.root must name a folder of images: data.root=DIR")
        if self.channels not in (1, 3):
            raise ConfigError(f"an image has 1 or 3 channels; got model.in_channels={self.channels}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or min(self.std) <= 0:
            raise ConfigError(
                "data.mean and data.std must be as many numbers, one or three, and std positive; "
                f"got {list(self.mean)} and {list(self.std)}"
            )
        if self.sampler not in ("shuffle", "balanced"):
            raise ConfigError(f"data.sampler must be shuffle or balanced; got {self.sampler!r}")
        if self.make is not None and self.make not in MAKERS:
            raise ConfigError(f"data.make must be null or one of {', '.join(MAKERS)}; got {self.make!r}")
        if self.batch_size < 1:
            raise ConfigError(f"data.batch_size must be at least 1; got {self.batch_size}")

    def find_splits(self) -> Splits:
        """Looks the files up; writes the data set first where it can be made and is not there."""
        if self.make is not None and not os.path.exists(self.root):
            MAKERS[self.make](self.root)
        return find_splits(
            self.root,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            val_split=self.val_split,
            split_seed=self.split_seed,
        )

    def per_channel(self, values: Sequence[float]) -> list[float]:
        """Three numbers for three channels, or their mean for one."""
        if len(values) == self.channels:
            return list(values)
        return [sum(values) / len(values)] * self.channels

    def workers(self, num_ranks: int) -> int:
        """Loader processes of each of `num_ranks` ranks of this machine."""
        if self.num_workers is not None:
            return self.num_workers
        return min(8, max(1, num_cores() // num_ranks))
