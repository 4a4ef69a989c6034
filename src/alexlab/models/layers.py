"""Layers whose gradients can be deterministic on a GPU, and a check that an image survives all convolutions and pooling layers.

PyTorch's CUDA kernels for the gradients of adaptive average pooling and of three-dimensional average pooling, which its local
response normalization of images uses, add in random order, so that both raise with `trainer.deterministic=true` (torch 2.11).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# AlexNet paper, section 3.3. Its text does not divide alpha by the window size; PyTorch and the authors' code do.
LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 1e-4, 0.75, 2.0
WINDOWED = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d  # layers that shrink an image


class CeilConv2d(nn.Conv2d):
    """Convolution whose output size is rounded up, as in cuda-convnet: zeros are added at the right and bottom."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, H', W')."""
        kernel, stride, padding = window(self)
        bottom, right = (-(length + 2 * padding - kernel) % stride for length in input.shape[-2:])
        return super().forward(nn.functional.pad(input, (0, right, 0, bottom)))


class ResponseNorm(nn.LocalResponseNorm):
    """Local response normalization a / (k + alpha / size * sum of a^2 over `size` neighbouring channels) ^ 0.75.

    It is separate for each group of channels. The default constants are those of the text of the AlexNet paper.

    Args:
        groups: number of channel groups (towers).
        size: number of neighbouring channels, n in the paper.
        alpha: factor of the mean of the squares; the text of the paper multiplies their sum by alpha instead.
        k: constant of the denominator.
    """

    def __init__(
        self, groups: int, *, size: int = LRN_SIZE, alpha: float = LRN_SIZE * LRN_ALPHA, k: float = LRN_K
    ) -> None:
        super().__init__(size, alpha, LRN_BETA, k)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        if input.dtype == torch.float16:  # its squares overflow from 256 on
            return self.forward(input.float()).half()
        if torch.are_deterministic_algorithms_enabled():  # with one spatial dimension PyTorch pools in two dimensions
            return self._normalize(input.flatten(2)).unflatten(2, input.shape[2:])
        return self._normalize(input)

    def _normalize(self, input: Tensor) -> Tensor:
        if self.groups == 1:
            return super().forward(input)
        return torch.cat([super(ResponseNorm, self).forward(part) for part in input.chunk(self.groups, 1)], 1)


class MapNorm(nn.Module):
    """Normalization within each channel: a / (1 + alpha * mean of a^2 over size x size cells) ^ 0.75.

    Cells outside of the map count as zeros. `rnorm` of cuda-convnet, WITHIN_CHANNEL of Caffe.

    Args:
        size: height and width of the window, an odd number.
        alpha: factor of the mean of the squares, `scale` of cuda-convnet.

    Raises:
        ValueError: if the size is even.
    """

    def __init__(self, size: int, alpha: float) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"model.spatial_size must be odd; got {size}")
        self.size, self.alpha = size, alpha

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        if input.dtype == torch.float16:
            return self.forward(input.float()).half()
        means = nn.functional.avg_pool2d(input.square(), self.size, 1, self.size // 2)
        return input / means.mul(self.alpha).add(1).pow(LRN_BETA)

    def extra_repr(self) -> str:
        """Return the constants, for the printed net."""
        return f"{self.size}, alpha={self.alpha}"


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling to a square, computed as two matrix products if deterministic algorithms are enabled."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, size, size)."""
        if not torch.are_deterministic_algorithms_enabled() or self.output_size == 1:
            return super().forward(input)
        size: Any = self.output_size
        dtype = torch.promote_types(input.dtype, torch.float32)
        rows, columns = (_pooling_matrix(length, size).to(input.device, dtype) for length in input.shape[-2:])
        with torch.autocast(input.device.type, enabled=False):
            return (rows @ input.to(dtype) @ columns.T).to(input.dtype)


def _pooling_matrix(length: int, size: int) -> Tensor:
    """Return the weights (size, length) that average a line over the windows of adaptive pooling, which may overlap."""
    positions, outputs = torch.arange(length), torch.arange(size)[:, None]
    first, end = outputs * length // size, -(-(outputs + 1) * length // size)
    return ((positions >= first) & (positions < end)).double() / (end - first)


def check_image_size(features: nn.Sequential, size: int) -> None:
    """Check that an image of size x size survives all convolutions and pooling layers.

    Raises:
        ValueError: if the output of a layer would be empty; with its name, its size formula and the smallest image size.
    """
    layers = [(name, layer) for name, layer in features.named_modules() if isinstance(layer, WINDOWED)]
    before = size
    for name, layer in layers:
        kernel, stride, padding = window(layer)
        after = _output_size(layer, before)
        if after < 1:
            rounding = "ceil" if _rounds_up(layer) else "floor"
            smallest = next(n for n in itertools.count(size + 1) if _survives([layer for _, layer in layers], n))
            raise ValueError(
                f"data.image_size={size} is too small for this net: {name} maps {before} x {before} to "
                f"{rounding}(({before} + 2 x {padding} - {kernel}) / {stride}) + 1 = {after}; the smallest size is "
                f"{smallest}"
            )
        before = after


def window(layer: nn.Module) -> tuple[int, int, int]:
    """Return kernel size, stride and padding of a convolution or pooling, which are equal in both directions."""
    assert isinstance(layer, WINDOWED)
    values = (layer.kernel_size, layer.stride, layer.padding)
    kernel, stride, padding = (int(value[0]) if isinstance(value, tuple) else int(value) for value in values)
    return kernel, stride, padding


def _rounds_up(layer: nn.Module) -> bool:
    return isinstance(layer, CeilConv2d) or bool(getattr(layer, "ceil_mode", False))


def _output_size(layer: nn.Module, size: int) -> int:
    kernel, stride, padding = window(layer)
    last = size + 2 * padding - kernel + (stride - 1 if _rounds_up(layer) else 0)
    if not isinstance(layer, nn.Conv2d):
        last = min(last, size + padding - 1)  # PyTorch drops windows of a pooling that begin outside of the image
    return last // stride + 1


def _survives(layers: Sequence[nn.Module], size: int) -> bool:
    for layer in layers:
        size = _output_size(layer, size)
        if size < 1:
            return False
    return True
