"""Images in the forms that Python programs hold them, as uint8 arrays."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from alexlab.data.crop import CropRule, part_of
from alexlab.data.decode import decode
from alexlab.data.image_file import Decoding
from alexlab.errors import DataError
from alexlab.inference.input_files import find_files

Images: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor | Iterable[Any]

MODES = {1: "L", 3: "RGB"}
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
        yield "", part_of(_from_pil(images, decoding.channels), crop)
    elif isinstance(images, np.ndarray | Tensor):
        pixels = _to_uint8(images)
        if isinstance(images, Tensor):
            pixels = np.moveaxis(pixels, -3, -1) if pixels.ndim >= 3 else pixels
        if pixels.ndim not in (2, 3, 4):
            raise DataError(f"{KINDS}; got {type(images).__name__} of shape {tuple(images.shape)}")
        for each in pixels if pixels.ndim == 4 else [pixels]:
            yield "", part_of(_with_channels(each, decoding.channels), crop)
    elif isinstance(images, Iterable) and not isinstance(images, bytes | dict):
        for image in images:
            yield from load_images(image, decoding, crop=crop)
    else:
        raise DataError(f"{KINDS}; got {type(images).__name__}")


def _from_pil(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        raise DataError(f"a PIL image must have 8 bits per channel; got mode {image.mode}; pass the path of its file")
    upright = ImageOps.exif_transpose(image)
    if "transparency" in upright.info:
        upright = upright.convert("RGBA")
    pixels = np.array(upright.convert(MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def _to_uint8(images: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()  # NumPy has no bfloat16
    array: np.ndarray = images
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"pixels must be uint8, or floats between 0 and 1; got {array.dtype}")
    if not ((array >= 0) & (array <= 1)).all():
        low, high = array.min(), array.max()
        raise DataError(f"pixels that are floats must be between 0 and 1, not normalized; got {low:.3g} to {high:.3g}")
    return (array * 255).round().astype(np.uint8)


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if 0 in pixels.shape or pixels.shape[2] not in (1, 3, 4):
        raise DataError(f"an image must have 1, 3 or 4 channels; got shape {pixels.shape}")
    pixels = pixels[:, :, :3]  # transparency is dropped, as in files
    if pixels.shape[2] == channels:
        return np.array(pixels)
    squeezed = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    converted = np.array(Image.fromarray(np.ascontiguousarray(squeezed)).convert(MODES[channels]))
    return converted.reshape(*pixels.shape[:2], channels)
