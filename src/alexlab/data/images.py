"""From a file to an upright picture: the one place where images are decoded."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from alexlab.data.folder import Split
from alexlab.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB"}
# 16 bits a value; Pillow's own conversion to 8 bits clips them to white.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def load_image(path: str | Path, channels: int = 3) -> Image.Image:
    """Decodes a file into an upright 8-bit picture, grey for 1 channel and RGB for 3. Transparency is dropped.

    Raises:
        DataError: with the path and the reason, when the file is no readable picture.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {os.fsdecode(path)}: {_reason(error)}") from error
    if upright.mode == "F":
        raise DataError(
            f"cannot read the image {os.fsdecode(path)}: its values are floating-point numbers of unknown range"
        )
    if upright.mode in DEEP_MODES:
        upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return upright.convert(MODES[channels])


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as a uint8 tensor (C, H, W), in memory row by row with the channels last, which resizes fastest."""
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


class ImageSplit:
    """One split as a data set with the interface of torchvision's ImageFolder.

    An item is (image, label): what `transform` makes of the uint8 tensor (C, H, W), and the index of the class.

    Args:
        split: the files.
        transform: called with the tensor; None leaves it as it is.
        channels: 1 for grey, 3 for RGB.
    """

    def __init__(self, split: Split, *, transform: Callable[[Tensor], Any] | None = None, channels: int = 3) -> None:
        self.split = split
        self.root = split.root
        self.classes = list(split.classes)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.transform = transform
        self.channels = channels

    @property
    def samples(self) -> list[tuple[str, int]]:
        """(path, label) of each image, made anew at each call: a list of a million strings is best not kept."""
        return [
            (os.path.join(self.root, path), label) for path, label in zip(self.split.paths, self.targets, strict=True)
        ]

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
        path, label = os.path.join(self.root, self.split.paths[index]), int(self.split.labels[index])
        image = to_tensor(load_image(path, self.channels))
        return (self.transform(image) if self.transform else image), label


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(FORMATS)}"
    return str(error) or type(error).__name__
