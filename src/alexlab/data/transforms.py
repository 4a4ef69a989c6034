"""Transforms that torchvision lacks, from uint8 images (C, H, W) to uint8 images; `Views` returns (V, C, H, W).

`crop_rule` returns the part of an image that the first transform of a recipe reads.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from alexlab.data.crop import Crop, CropRule, shorter_side_resized

VIEWS = ("center", "five", "ten_crop")


def crop_rule(transform: Any) -> CropRule | None:
    """Return the rule of a transform for the part of an image that it reads and the size that it resizes it to.

    The rule of a RandomResizedCrop draws the random numbers that the transform would draw; a resize to its size then completes
    it. Any other transform still has to be applied. None for transforms that are not known to resize first, with an antialiased
    triangle filter.
    """
    if isinstance(transform, CenterView | RandomCropView | Views):
        return partial(_whole, size=[transform.resized])
    if type(transform) not in (v2.RandomResizedCrop, v2.Resize) or not transform.antialias:
        return None
    if getattr(transform.interpolation, "value", transform.interpolation) != "bilinear":
        return None
    if isinstance(transform, v2.RandomResizedCrop):
        return partial(_random_crop, transform)
    return None if transform.max_size is not None else partial(_whole, size=transform.size)


def _whole(height: int, width: int, size: Sequence[int]) -> Crop:
    resized = (size[0], size[1]) if len(size) == 2 else shorter_side_resized(height, width, size[0])
    return Crop(0, 0, height, width, resized)


def _random_crop(transform: v2.RandomResizedCrop, height: int, width: int) -> Crop:
    box = transform.make_params([torch.empty(1, height, width, device="meta")])
    return Crop(box["top"], box["left"], box["height"], box["width"], tuple(transform.size))


class CenterView(torch.nn.Module):
    """Resize of the shorter side to `size` / `ratio`, then a central square crop of `size`.

    Args:
        size: side of the crop, in pixels.
        ratio: fraction of the shorter side that is kept; 0.875 = 224 / 256 as in the 2012 paper, section 2.
    """

    def __init__(self, size: int, ratio: float = 0.875) -> None:
        super().__init__()
        self.ratio, self.resized = ratio, round(size / ratio)
        # Two crops, so that a packed central square gives the same pixels, even if the margins are odd.
        self.to_square = v2.Compose([v2.Resize(self.resized, antialias=True), v2.CenterCrop(self.resized)])
        self.crop = v2.CenterCrop(size)

    def forward(self, image: Tensor) -> Tensor:
        return self.crop(image if _is_square(image, self.resized) else self.to_square(image))


class RandomCropView(torch.nn.Module):
    """Resize of the shorter side to `size` / `ratio`, then a random square crop of `size`, as in the 2012 paper.

    Args:
        size: side of the crop, in pixels.
        ratio: as in CenterView.
        square: crop from the central square of `size` / `ratio` only, as the paper did, rather than from the whole image.
        images_per_crop: number of consecutive training images of an epoch that share the position of their crop; 32 in the
            authors' code of 2012.
    """

    def __init__(self, size: int, ratio: float = 0.875, square: bool = False, images_per_crop: int = 1) -> None:
        super().__init__()
        if images_per_crop < 1:
            raise ValueError(f"images_per_crop must be at least 1; got {images_per_crop}")
        self.resized, self.square = round(size / ratio), square
        self.images_per_crop = images_per_crop
        self.shared_seed: int | None = None  # of the position of the next crop, see `share_crops`
        center = [v2.CenterCrop(self.resized)] if square else []
        self.prepare = v2.Compose([v2.Resize(self.resized, antialias=True), *center])
        self.crop = v2.RandomCrop(size)

    def forward(self, image: Tensor) -> Tensor:
        prepared = image if _is_square(image, self.resized) else self.prepare(image)
        with self.draws():
            return self.crop(prepared)

    @contextmanager
    def draws(self) -> Iterator[None]:
        """Draw the position of the crop from the generator of the images that share it, if they do."""
        if self.shared_seed is None:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.shared_seed)
            yield


def _is_square(image: Tensor, side: int) -> bool:
    """Return whether an image is a square of `side`, so that resizing can be skipped: it takes 20 us even if it does nothing."""
    return image.shape[-2:] == (side, side)


class NearestResize(torch.nn.Module):
    """Resize of both sides with nearest-neighbour interpolation, pixel by pixel equal to Pillow's.

    Keras' `flow_from_directory` reads images so by default. torchvision's two nearest modes compute positions in 32 bits or
    without the half pixel, and differ.

    Args:
        size: height and width, in pixels.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = (_nearest(length, self.size) for length in image.shape[-2:])
        return image[:, rows[:, None], columns]


def _nearest(length: int, size: int) -> Tensor:
    """Return the positions in a line of `length` pixels that Pillow copies to a line of `size`."""
    scale = length / size
    # A running sum in 64 bits, as in ImagingScaleAffine of Pillow 12: the product differs where it is an integer.
    positions = torch.tensor([0.5 * scale, *[scale] * (size - 1)], dtype=torch.float64).cumsum(0)
    return positions.long()


class Views(torch.nn.Module):
    """Several crops of an image, over which an evaluation averages the softmax (2012 paper, section 4.1).

    The shorter side is resized to `size` / `ratio`, and the crops are taken from the central square.

    Args:
        size: side of each crop, in pixels.
        views: `center`, `five` (the corners and the centre) or `ten_crop` (those and their mirror images).
        ratio: as in CenterView.
    """

    def __init__(self, size: int, views: str = "center", ratio: float = 0.875) -> None:
        super().__init__()
        if views not in VIEWS:
            raise ValueError(f"views must be one of {', '.join(VIEWS)}; got {views!r}")
        self.resized = round(size / ratio)
        self.to_square = CenterView(self.resized, 1.0)
        self.crop = v2.FiveCrop(size)
        self.views = views

    def forward(self, image: Tensor) -> Tensor:
        five = torch.stack(self.crop(self.to_square(image)))
        if self.views == "center":
            return five[-1:]
        return five if self.views == "five" else torch.cat([five, five.flip(-1)])


class PCAColorNoise(torch.nn.Module):
    """Addition of one random colour to all pixels of an image (2012 paper, section 4.1).

    The colour is P (a * s), where the columns of P are the principal axes of the colours of the training split and a ~ N(0, std)
    is drawn for each axis. The paper's text and the authors' code differ in s and in what follows:

    - `eigenvalue` (the text): s are the eigenvalues of the covariance of the colours, as values in [0, 1];
    - `std` (the code): s are their roots, the standard deviations along the axes. The deviations from the mean are then divided
      by 1 + std. The code divides them after subtracting the mean image; here the mean is that of the colours.

    The result is rounded to 8 bits, which the authors did not do.

    Args:
        eigenvalues: three numbers; null in a config measures them, the axes and the mean on the training split.
        eigenvectors: 3 x 3, one column per eigenvalue.
        mean: mean of each channel, as values in [0, 1]; for `std` only.
        std: standard deviation of a; 0.1 in the paper.
        scale: `eigenvalue` or `std`.
        end_epoch: number of epochs with noise; None for all of them. The authors' code had 68 of 93.
    """

    def __init__(
        self,
        eigenvalues: Sequence[float] | None = None,
        eigenvectors: Sequence[Sequence[float]] | None = None,
        mean: Sequence[float] | None = None,
        std: float = 0.1,
        scale: str = "eigenvalue",
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        if eigenvalues is None or eigenvectors is None:
            raise ValueError(
                "eigenvalues and eigenvectors must both be given, or both be null for a run to measure them"
            )
        if scale not in ("eigenvalue", "std"):
            raise ValueError(f"scale must be eigenvalue or std; got {scale!r}")
        if scale == "std" and mean is None:
            raise ValueError("mean must be given for scale=std")
        if end_epoch is not None and end_epoch < 0:
            raise ValueError(f"end_epoch must be null or at least 0; got {end_epoch}")
        sizes = torch.tensor(eigenvalues)
        self.axes = 255 * torch.tensor(eigenvectors) * (sizes if scale == "eigenvalue" else sizes.sqrt())
        if self.axes.shape != (3, 3):
            raise ValueError(f"eigenvectors must be 3 x 3 and eigenvalues 3 numbers; got {eigenvectors}, {eigenvalues}")
        self.mean = None if scale == "eigenvalue" else 255 * torch.tensor(mean)
        self.std = std
        self.end_epoch = end_epoch
        self.epoch = 0  # of the image, see `set_epoch`

    def forward(self, image: Tensor) -> Tensor:
        if self.end_epoch is not None and self.epoch >= self.end_epoch:
            return image
        shift, factor = (self.axes * (self.std * torch.randn(3))).sum(1), 1.0
        if self.mean is not None:
            factor = 1 / (1 + self.std)
            shift = self.mean + factor * (shift - self.mean)
        return (factor * image + shift[:, None, None]).round().clamp(0, 255).to(torch.uint8)


def set_epoch(transform: Any, epoch: int) -> None:
    """Set the epoch of the next images in the transforms of a recipe that depend on it."""
    if isinstance(transform, PCAColorNoise):
        transform.epoch = epoch
    for step in getattr(transform, "transforms", ()):
        set_epoch(step, epoch)


def shared_crops(transform: Any) -> list[RandomCropView]:
    """Return the crops of a recipe that several images share."""
    steps = [transform, *getattr(transform, "transforms", ())]
    return [step for step in steps if isinstance(step, RandomCropView) and step.images_per_crop > 1]


class RandomGeometry(torch.nn.Module):
    """Keras' `ImageDataGenerator`: random rotation, shift, shear and zoom about the centre, in one bilinear resampling.

    They are composed as in Keras, which rotates the shift too. The size of the image stays the same. Pixels from outside it
    repeat the nearest pixel.

    Args:
        rotation: largest angle either way, in degrees.
        shift: largest shift along each side, as a fraction of that side.
        shear: largest shear angle either way, in degrees. This is Keras' unit, in which its usual .2 is hardly a shear.
        zoom: each side is scaled by its own factor between 1 - zoom and 1 + zoom.
    """

    def __init__(self, rotation: float = 0.0, shift: float = 0.0, shear: float = 0.0, zoom: float = 0.0) -> None:
        super().__init__()
        if not 0 <= zoom < 1:
            raise ValueError(f"zoom must be in [0, 1); got {zoom}")
        self.rotation, self.shift, self.shear, self.zoom = rotation, shift, shear, zoom

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        draws = (2 * torch.rand(6) - 1).tolist()
        angle, shear = math.radians(draws[0] * self.rotation), math.radians(draws[1] * self.shear)
        zoom_x, zoom_y = 1 + draws[2] * self.zoom, 1 + draws[3] * self.zoom
        rotate = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = (
            rotate
            @ torch.tensor([[1, -math.sin(shear)], [0, math.cos(shear)]])
            @ torch.tensor([[zoom_x, 0], [0, zoom_y]])
        )
        # affine_grid measures in half sides: without this factor, a rotation would distort an oblong image.
        sides = torch.tensor([width, height], dtype=torch.float)
        matrix = matrix * sides[None] / sides[:, None]
        shift = 2 * (rotate @ (self.shift * sides * torch.tensor(draws[4:]))) / sides
        grid = F.affine_grid(torch.cat([matrix, shift[:, None]], 1)[None], [1, 1, height, width], align_corners=False)
        resampled = F.grid_sample(image[None].float(), grid, padding_mode="border", align_corners=False)[0]
        return resampled.round().clamp(0, 255).to(torch.uint8)
