"""Transforms that torchvision does not have. All take and give uint8 images (C, H, W)."""

import torch
from torch import Tensor
from torchvision.transforms import v2


class CenterView(torch.nn.Module):
    """The centre of the image: the shorter side resized to `size` / `ratio`, then a square of `size` cut from the centre.

    Args:
        size: side of the square, in pixels.
        ratio: the part of the shorter side that is kept; 0.875 = 224 / 256 as in the 2012 paper, section 2.
    """

    def __init__(self, size: int, ratio: float = 0.875) -> None:
        super().__init__()
        self.view = v2.Compose([v2.Resize(round(size / ratio), antialias=True), v2.CenterCrop(size)])

    def forward(self, image: Tensor) -> Tensor:
        return self.view(image)


class RandomCropView(torch.nn.Module):
    """A square of `size` from anywhere in the image whose shorter side is resized to `size` / `ratio`, as in the 2012 paper.

    Args:
        size: side of the square, in pixels.
        ratio: as in CenterView.
    """

    def __init__(self, size: int, ratio: float = 0.875) -> None:
        super().__init__()
        self.view = v2.Compose([v2.Resize(round(size / ratio), antialias=True), v2.RandomCrop(size)])

    def forward(self, image: Tensor) -> Tensor:
        return self.view(image)
