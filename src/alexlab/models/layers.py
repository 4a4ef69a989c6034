"""Layers whose gradients can be deterministic on a GPU, and a check that an image survives all convolutions and poolings.

PyTorch's CUDA kernels for the gradients of adaptive average pooling and of three-dimensional average pooling, which its local
response normalization of images uses, add in random order, so that both raise with `trainer.deterministic=true` (torch 2.11).
"""

from typing import Any

import torch
from torch import Tensor, nn

# AlexNet paper, section 3.3. The paper does not divide alpha by the window size; PyTorch does.
LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 1e-4, 0.75, 2.0


class ResponseNorm(nn.LocalResponseNorm):
    """Local response normalization with the constants of the AlexNet paper, separately within each group of channels.

    Args:
        groups: number of channel groups (towers).
    """

    def __init__(self, groups: int) -> None:
        super().__init__(LRN_SIZE, LRN_SIZE * LRN_ALPHA, LRN_BETA, LRN_K)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        if torch.are_deterministic_algorithms_enabled():  # with one spatial dimension PyTorch pools in two dimensions
            return self._normalize(input.flatten(2)).unflatten(2, input.shape[2:])
        return self._normalize(input)

    def _normalize(self, input: Tensor) -> Tensor:
        if self.groups == 1:
            return super().forward(input)
        return torch.cat([super(ResponseNorm, self).forward(part) for part in input.chunk(self.groups, 1)], 1)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling to a square, as two matrix products where PyTorch is asked for deterministic algorithms."""

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
    """Check that an image of size x size survives all convolutions and poolings.

    Raises:
        ValueError: if the output of a layer would be empty; with its name, its size formula and the smallest image size.
    """
    windows = [
        (name, *_window(layer))
        for name, layer in features.named_modules()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d)
    ]
    before = size
    for name, kernel, stride, padding in windows:
        after = (before + 2 * padding - kernel) // stride + 1
        if after < 1:
            smallest = 1
            for _, kernel_, stride_, padding_ in reversed(windows):
                smallest = max(1, (smallest - 1) * stride_ + kernel_ - 2 * padding_)
            raise ValueError(
                f"data.image_size={size} is too small for this net: {name} maps {before} x {before} to "
                f"floor(({before} + 2 x {padding} - {kernel}) / {stride}) + 1 = {after}; the smallest size is {smallest}"
            )
        before = after


def _window(layer: nn.Conv2d | nn.MaxPool2d) -> tuple[int, int, int]:
    """Return kernel size, stride and padding, which are equal in both directions."""
    values = (layer.kernel_size, layer.stride, layer.padding)
    kernel, stride, padding = (int(value[0]) if isinstance(value, tuple) else int(value) for value in values)
    return kernel, stride, padding
