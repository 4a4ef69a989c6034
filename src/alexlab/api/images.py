"""Images in the forms that Python programs hold them, as uint8 arrays."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from alexlab.data.crop import CropRule, part_of
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
        return os.path.isfile(images)  # else a folder or a glob
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, Image.Image)


def load_images(
    images: Images, decoding: Decoding, *, crop: CropRule | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the path of each image, empty for images in memory, and its pixels, uint8 (H, W, channels).

    Args:
        images: a path of an image or of a folder, which is searched; a PIL image; an array (H, W), (H, W, C) or (N, H, W, C);
            a tensor (C, H, W) or (N, C, H, W); or an iterable of these. Values are 0 to 255 if they are uint8, else 0 to 1.
        decoding: decoding settings; images in memory get the same number of channels.
        crop: rule for the part to return, see `alexlab.data.decode.decode`.

    Raises:
        ImageError: if a file cannot be read.
        DataError: if the images have another type, shape or range.
    """
    if isinstance(images, str | os.PathLike):
        for path in find_files(os.fspath(images)):
            yield path, decode(path, decoding, crop=crop)
    elif isinstance(images, Image.Image):
        yield "", part_of(from_pil(images, decoding.channels), crop)
    elif isinstance(images, np.ndarray | Tensor):
        pixels = to_uint8(images)
        if isinstance(images, Tensor):
            pixels = np.moveaxis(pixels, -3, -1) if pixels.ndim >= 3 else pixels
        if pixels.ndim not in (2, 3, 4):
            raise DataError(f"{KINDS}; got {type(images).__name__} of shape {tuple(images.shape)}")
        for each in pixels if pixels.ndim == 4 else [pixels]:
            yield "", part_of(with_channels(each, decoding.channels), crop)
    elif isinstance(images, Iterable) and not isinstance(images, bytes | dict):
        for image in images:
            yield from load_images(image, decoding, crop=crop)
    else:
        raise DataError(f"{KINDS}; got {type(images).__name__}")
