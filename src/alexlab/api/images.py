"""Conversion of paths, PIL images, arrays and tensors to uint8 arrays."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from alexlab.config.grammar import expand_home
from alexlab.data.crop import CropRule, part_of
from alexlab.data.dataset import Load
from alexlab.data.decode import decode
from alexlab.data.image_file import Decoding
from alexlab.data.in_memory import from_pil, to_uint8, with_channels
from alexlab.errors import DataError
from alexlab.inference.input_files import find_files

Images: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor | Iterable[Any]

KINDS = (
    "images must be a path, a PIL image, an array (H, W, C) or (N, H, W, C), a tensor (C, H, W) or (N, C, H, W), "
    "or a list of these"
)


def is_single(images: Images) -> bool:
    """Return whether `images` is one image, not a folder, a batch or a list."""
    if isinstance(images, str | os.PathLike):
        return os.path.isfile(expand_home(images))  # else a folder or a glob
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, Image.Image)


def load_images(images: Images) -> Iterator[tuple[str, Load]]:
    """Yield the path of each image, empty for images in memory, and the function that decodes it like `decode`.

    Args:
        images: a path of an image or of a folder, which is searched; a PIL image; an array (H, W), (H, W, C) or (N, H, W, C);
            a tensor (C, H, W) or (N, C, H, W); or an iterable of these. Values are 0 to 255 if they are uint8, else 0 to 1.

    Raises:
        DataError: if the images have another type, shape or range.
    """
    if isinstance(images, str | os.PathLike):
        for path in find_files(expand_home(images)):
            yield path, partial(decode, path)
    elif isinstance(images, Image.Image):
        yield "", partial(_convert, from_pil, images)
    elif isinstance(images, np.ndarray | Tensor):
        pixels = to_uint8(images)
        if isinstance(images, Tensor):
            pixels = np.moveaxis(pixels, -3, -1) if pixels.ndim >= 3 else pixels
        if pixels.ndim not in (2, 3, 4):
            raise DataError(f"{KINDS}; got {type(images).__name__} of shape {tuple(images.shape)}")
        for each in pixels if pixels.ndim == 4 else [pixels]:
            yield "", partial(_convert, with_channels, each)
    elif isinstance(images, Iterable) and not isinstance(images, bytes | dict):
        for image in images:
            yield from load_images(image)
    else:
        raise DataError(f"{KINDS}; got {type(images).__name__}")


def _convert(
    convert: Callable[[Any, int], np.ndarray], image: Any, decoding: Decoding, /, *, crop: CropRule | None = None
) -> np.ndarray:
    """Return the part that `crop` selects of an image in memory, with the number of channels of `decoding`."""
    return part_of(convert(image, decoding.channels), crop)
