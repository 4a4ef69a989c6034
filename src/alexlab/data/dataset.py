"""One split as a data set of tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexlab.data.image_file import DEFAULT_DECODING, Decoding
from alexlab.data.samplers import UNREADABLE
from alexlab.data.splits import Split
from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import ImageError


def to_tensor(pixels: np.ndarray) -> Tensor:
    """A picture (H, W, C) as a tensor (C, H, W), in memory row by row with the channels last, which resizes fastest."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


class ImageDataset:
    """One split as a data set with the interface of torchvision's ImageFolder.

    An item is (image, label): what `transform` makes of the uint8 tensor (C, H, W), and the index of the class.

    Args:
        split: the files.
        transform: called with the tensor; None leaves it as it is.
        decoding: the settings by which files become pixels.
        unreadable: takes images that cannot be read; their items are black images with the label UNREADABLE. None raises
            ImageError instead.
    """

    def __init__(
        self,
        split: Split,
        *,
        transform: Callable[[Tensor], Any] | None = None,
        decoding: Decoding = DEFAULT_DECODING,
        unreadable: UnreadableLog | None = None,
    ) -> None:
        self.split = split
        self.root = split.root
        self.classes = list(split.classes)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.transform = transform
        self.decoding = decoding
        self.unreadable = unreadable

    @property
    def samples(self) -> list[tuple[str, int]]:
        """(path, label) of each image, made anew at each call: a list of a million strings is best not kept."""
        return [(self.split.file_path(index), label) for index, label in enumerate(self.targets)]

    @property
    def imgs(self) -> list[tuple[str, int]]:
        """The older name of `samples`."""
        return self.samples

    @property
    def targets(self) -> list[int]:
        """The label of each image."""
        found: list[int] = self.split.labels.tolist()
        return found

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        label = int(self.split.labels[index])
        try:
            image = to_tensor(self.split.load(index, self.decoding))
        except ImageError as error:
            if self.unreadable is None:
                raise
            self.unreadable.add(error)
            image, label = torch.zeros(self.decoding.channels, 256, 256, dtype=torch.uint8), UNREADABLE
        return (self.transform(image) if self.transform else image), label
