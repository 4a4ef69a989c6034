"""Images in memory, such as PIL images and arrays, as uint8 arrays (H, W, C)."""

import numpy as np
from PIL import Image
from torch import Tensor

from alexlab.data.orientation import apply_orientation, orientation_of
from alexlab.errors import DataError

MODES = {1: "L", 3: "RGB"}


def from_pil(image: Image.Image, channels: int) -> np.ndarray:
    """Return the pixels of an upright image, uint8 (H, W, channels).

    Raises:
        DataError: if it has more than 8 bits per channel.
    """
    if image.mode.startswith(("I", "F")):
        raise DataError(f"a PIL image must have 8 bits per channel; got mode {image.mode}; pass the path of its file")
    image.load()  # rotates a TIFF file, and reads metadata behind the pixels
    opaque = image.convert("RGBA") if "transparency" in image.info else image
    pixels = np.array(opaque.convert(MODES[channels])).reshape(image.height, image.width, channels)
    return apply_orientation(pixels, orientation_of(image))


def to_uint8(images: np.ndarray | Tensor) -> np.ndarray:
    """Return pixels as uint8; floats must be between 0 and 1.

    Raises:
        DataError: if they have another type or range.
    """
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


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Return a copy of the pixels (H, W) or (H, W, C) with another number of channels, uint8 (H, W, channels).

    Raises:
        DataError: if the image is empty or has neither 1, 3 nor 4 channels.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] not in (1, 3, 4):
        raise DataError(f"an image must have 1, 3 or 4 channels; got shape {pixels.shape}")
    pixels = pixels[:, :, :3]  # transparency is dropped, as in files
    if pixels.shape[2] == channels:
        return np.array(pixels)
    squeezed = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    converted = np.array(Image.fromarray(np.ascontiguousarray(squeezed)).convert(MODES[channels]))
    return converted.reshape(*pixels.shape[:2], channels)
