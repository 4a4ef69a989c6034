"""Orientation of images: EXIF 2.3, tag 0x0112, or `tiff:Orientation` of XMP if EXIF has none, as in Pillow."""

import numpy as np
from PIL import Image

from alexlab.data.crop import Crop

ORIENTATION = 0x0112  # the EXIF tag
FLIPS_ROWS, FLIPS_COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)  # after the transposition of 5 to 8


def orientation_of(image: Image.Image) -> int:
    """Return the orientation, 1 to 8; 1 if it is missing or the metadata is corrupt, which does not affect pixels."""
    # getexif takes 20 us to find that there is none; it also reads XMP.
    if image.format in ("JPEG", "MPO") and not {"exif", "xmp"} & image.info.keys():
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # corrupt metadata can raise anything
        return 1
    return orientation if isinstance(orientation, int) and orientation in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened image after its orientation is applied."""
    width, height = image.size
    # Pillow has already transposed the size of a TIFF file by its tag, but not by XMP.
    done = image.format == "TIFF" and ORIENTATION in image.tag_v2  # type: ignore[attr-defined]
    return (height, width) if orientation_of(image) >= 5 and not done else (width, height)


def apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return stored pixels rotated and mirrored by their orientation."""
    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in FLIPS_ROWS:
        pixels = pixels[::-1]
    if orientation in FLIPS_COLUMNS:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def stored_crop(crop: Crop, orientation: int, height: int, width: int) -> Crop:
    """Return the crop of the stored pixels that `apply_orientation` turns into a crop of the upright image.

    Args:
        crop: crop of the upright image.
        orientation: 1 to 8.
        height, width: size of the upright image.
    """
    top = height - crop.top - crop.height if orientation in FLIPS_ROWS else crop.top
    left = width - crop.left - crop.width if orientation in FLIPS_COLUMNS else crop.left
    if orientation >= 5:
        return Crop(left, top, crop.width, crop.height, (crop.size[1], crop.size[0]))
    return Crop(top, left, crop.height, crop.width, crop.size)
