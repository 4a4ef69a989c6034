"""Transforms that torchvision does not have. All take and give uint8 images (C, H, W); `Views` gives (V, C, H, W)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

VIEWS = ("center", "five", "ten_crop")


class CenterView(torch.nn.Module):
    """The centre of the image: the shorter side resized to `size` / `ratio`, then a square of `size` cut from the centre.

    Args:
        size: side of the square, in pixels.
        ratio: the part of the shorter side that is kept; 0.875 = 224 / 256 as in the 2012 paper, section 2.
    """

    def __init__(self, size: int, ratio: float = 0.875) -> None:
        super().__init__()
        self.whole = round(size / ratio)
        # Two steps, so that a central square that was kept beforehand gives the same pixels, also where margins are odd.
        self.square = v2.Compose([v2.Resize(self.whole, antialias=True), v2.CenterCrop(self.whole)])
        self.cut = v2.CenterCrop(size)

    def forward(self, image: Tensor) -> Tensor:
        return self.cut(image if _is_square(image, self.whole) else self.square(image))


class RandomCropView(torch.nn.Module):
    """A square of `size` from anywhere in the image whose shorter side is resized to `size` / `ratio`, as in the 2012 paper.

    Args:
        size: side of the square, in pixels.
        ratio: as in CenterView.
        square: cut from the central square of `size` / `ratio` only, as the paper did; else from the whole image.
    """

    def __init__(self, size: int, ratio: float = 0.875, square: bool = False) -> None:
        super().__init__()
        self.whole, self.square = round(size / ratio), square
        centre = [v2.CenterCrop(self.whole)] if square else []
        self.resized = v2.Compose([v2.Resize(self.whole, antialias=True), *centre])
        self.cut = v2.RandomCrop(size)

    def forward(self, image: Tensor) -> Tensor:
        return self.cut(image if _is_square(image, self.whole) else self.resized(image))


def _is_square(image: Tensor, side: int) -> bool:
    """Whether an image is already what it would be resized and cut to: steps that do nothing take 20 us, a cut 20."""
    return image.shape[-2:] == (side, side)


class Views(torch.nn.Module):
    """Several views of one image, over which an evaluation averages the softmax (the 2012 paper, section 4.1).

    They are cut from the central square of `size` / `ratio`, to which the shorter side is resized.

    Args:
        size: side of each view, in pixels.
        views: `center`, `five` (the corners and the centre) or `ten_crop` (those and their mirror images).
        ratio: as in CenterView.
    """

    def __init__(self, size: int, views: str = "center", ratio: float = 0.875) -> None:
        super().__init__()
        if views not in VIEWS:
            raise ValueError(f"views must be one of {', '.join(VIEWS)}; got {views!r}")
        self.whole = round(size / ratio)
        self.square = CenterView(self.whole, 1.0)
        self.cut = v2.FiveCrop(size)
        self.views = views

    def forward(self, image: Tensor) -> Tensor:
        five = torch.stack(self.cut(self.square(image)))
        if self.views == "center":
            return five[-1:]
        return five if self.views == "five" else torch.cat([five, five.flip(-1)])


class PCAColorNoise(torch.nn.Module):
    """Adds to all pixels of an image one random colour, P (a * lambda) (the 2012 paper, section 4.1).

    P and lambda are the eigenvectors and eigenvalues of the covariance of the colours of the training split, as values in
    [0, 1], and a ~ N(0, std) is drawn for each component. The sum is rounded to 8 bits, which the paper did not do.

    Args:
        eigenvalues: three numbers; null in a config is measured by the run.
        eigenvectors: 3 x 3, a column for each eigenvalue.
        std: of a; 0.1 in the paper.
    """

    def __init__(
        self,
        eigenvalues: Sequence[float] | None = None,
        eigenvectors: Sequence[Sequence[float]] | None = None,
        std: float = 0.1,
    ) -> None:
        super().__init__()
        if eigenvalues is None or eigenvectors is None:
            raise ValueError("eigenvalues and eigenvectors must be given, or both be null for a run to measure them")
        self.axes = 255 * torch.tensor(eigenvectors) * torch.tensor(eigenvalues)
        if self.axes.shape != (3, 3):
            raise ValueError(f"eigenvectors must be 3 x 3 and eigenvalues 3 numbers; got {eigenvectors}, {eigenvalues}")
        self.std = std

    def forward(self, image: Tensor) -> Tensor:
        shift = (self.axes * (self.std * torch.randn(3))).sum(1)
        return (image + shift[:, None, None]).round().clamp(0, 255).to(torch.uint8)


class RandomGeometry(torch.nn.Module):
    """Keras' `ImageDataGenerator`: a random rotation, shift, shear and zoom of the image about its centre, in one bilinear
    pass; what comes from outside the image repeats its nearest pixel. The size stays.

    Args:
        rotation: largest angle, in degrees, either way.
        shift: largest shift along each side, as a part of that side.
        shear: largest angle of shear, in degrees, either way: Keras' unit, in which its usual .2 is hardly a shear.
        zoom: each side is zoomed by its own factor between 1 - zoom and 1 + zoom.
    """

    def __init__(self, rotation: float = 0.0, shift: float = 0.0, shear: float = 0.0, zoom: float = 0.0) -> None:
        super().__init__()
        if not 0 <= zoom < 1:
            raise ValueError(f"zoom must lie in [0, 1); got {zoom}")
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
        # affine_grid counts in half sides: a turn of an oblong image must be told their ratio.
        sides = torch.tensor([width, height], dtype=torch.float)
        matrix = matrix * sides[None] / sides[:, None]
        shift = 2 * self.shift * torch.tensor(draws[4:])
        grid = F.affine_grid(torch.cat([matrix, shift[:, None]], 1)[None], [1, 1, height, width], align_corners=False)
        moved = F.grid_sample(image[None].float(), grid, padding_mode="border", align_corners=False)[0]
        return moved.round().clamp(0, 255).to(torch.uint8)
