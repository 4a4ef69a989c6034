"""Datasets of a split: images as tensors, with random draws that depend only on seed, epoch and index."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from alexlab.data.crop import CropRule
from alexlab.data.image_file import Decoding
from alexlab.data.labels import PADDING, UNREADABLE
from alexlab.data.samplers import derived_seed
from alexlab.data.splits import Split
from alexlab.data.transforms import RandomCropView, crop_rule
from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import ImageError

SHARED = 1  # distinguishes the seeds of shared crops from those of images


class MapDataset(Protocol):
    """Map-style dataset of (input, label) pairs."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Return an image (H, W, C) as a tensor (C, H, W) without copying it: channels last in memory, which resizes fastest."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


class Load(Protocol):
    """Function that decodes one image: `decode` or the like with its first argument."""

    def __call__(self, decoding: Decoding, /, *, crop: CropRule | None = None) -> np.ndarray: ...


Reader: TypeAlias = Callable[[Load], Any]  # what a network reads from one image


class ViewReader:
    """Reading of the part of an image that a transform needs.

    Args:
        transform: function of a uint8 image (C, H, W); None for the identity.
        decoding: decoding settings.
    """

    def __init__(self, transform: Callable[[Tensor], Any] | None, decoding: Decoding) -> None:
        self.decoding = decoding
        steps: list[Any] = (
            list(transform.transforms) if isinstance(transform, v2.Compose) else [transform or nn.Identity()]
        )
        first = steps[0]
        self.crop = crop_rule(first) if decoding.jpeg_scaling else None
        if self.crop is not None and isinstance(first, v2.RandomResizedCrop):
            steps[0] = v2.Resize(first.size, interpolation=first.interpolation, antialias=first.antialias)
        self.steps = steps

    def __call__(self, load: Load) -> Any:
        """Return the transformed image."""
        return self.finish(load(self.decoding, crop=self.crop))

    def finish(self, pixels: np.ndarray) -> Any:
        """Return the transformed image from the part of it that `crop` selects."""
        image: Any = to_tensor(pixels)
        for step in self.steps:
            image = step(image)
        return image


class SeveralReaders:
    """Reading of the same image by several readers, as a tuple; each decodes as it would alone."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers

    def __call__(self, load: Load) -> tuple[Any, ...]:
        return tuple(read(load) for read in self.readers)


class ImageDataset:
    """Dataset of one split. An item is (image, label).

    Args:
        split: files and labels.
        read: reading of an image, usually a `ViewReader`.
        unreadable: log for images that cannot be read; their items are black images with the label UNREADABLE. None raises
            ImageError instead.
    """

    def __init__(self, split: Split, read: Reader, *, unreadable: UnreadableLog | None = None) -> None:
        self.split, self.read, self.unreadable = split, read, unreadable

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        label = int(self.split.labels[index])
        try:
            return self.read(partial(self.split.load, index)), label
        except ImageError as error:
            if self.unreadable is None:
                raise
            self.unreadable.add(error)
            return self.read(_load_black), UNREADABLE


def _load_black(decoding: Decoding, /, *, crop: CropRule | None = None) -> np.ndarray:
    return np.zeros((256, 256, decoding.channels), np.uint8)


class SeededDataset:
    """Dataset with keys (epoch, index, position), whose random draws come from a generator seeded by (seed, epoch, index).

    The position in the epoch decides which images share a crop, see `RandomCropView`; it may be left out if none do.

    Args:
        dataset: the items.
        seed: seed of the run.
        on_epoch: function called with each new epoch, in the process that reads.
        shared: crops of the dataset's transform that several images share.
    """

    def __init__(
        self,
        dataset: MapDataset,
        *,
        seed: int,
        on_epoch: Callable[[int], None] | None = None,
        shared: Sequence[RandomCropView] = (),
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.on_epoch = on_epoch
        self.shared = shared
        self.epoch: int | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, ...]) -> tuple[Any, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, ...]]) -> list[tuple[Any, int]]:
        """Return the items of a batch, which DataLoader fetches at once."""
        items = []
        with torch.random.fork_rng(devices=[]):
            for epoch, index, *position in keys:
                if epoch != self.epoch and self.on_epoch is not None:
                    self.on_epoch(epoch)
                self.epoch = epoch
                for crop in self.shared:
                    crop.shared_seed = derived_seed(self.seed, epoch, position[0] // crop.images_per_crop, SHARED)
                torch.default_generator.manual_seed(derived_seed(self.seed, epoch, index))
                items.append(self.dataset[index])
        return items


class PaddedDataset:
    """Dataset that accepts the index PADDING, for an item with the label PADDING, which no metric counts."""

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.dataset[max(index, 0)]
        return image, label if index >= 0 else PADDING
