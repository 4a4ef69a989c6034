"""The part of an image that a recipe reads, known before the image is decoded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Crop:
    """A box of an upright image, and the size that a recipe resizes it to, in pixels.

    Args:
        top, left, height, width: the box.
        size: height and width after the resize.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """Return the box of a whole image, (height, width, ...), without copying it."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


CropRule = Callable[[int, int], Crop]  # crop for the height and width of an image; it may draw random numbers


def part_of(pixels: np.ndarray, crop: CropRule | None) -> np.ndarray:
    """Return the part of a whole image, (height, width, ...), that a rule selects; all of it without a rule."""
    return pixels if crop is None else crop(*pixels.shape[:2]).cut(pixels)


def shorter_side_resized(height: int, width: int, size: int) -> tuple[int, int]:
    """Return height and width of an image after a resize of its shorter side to `size` (torchvision's rule)."""
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)
