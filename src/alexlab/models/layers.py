"""How convolutions and poolings use an image up."""

import torch
from torch import Tensor, nn

# The paper, section 3.3, with its own alpha: PyTorch divides alpha by the size, the paper does not.
LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 1e-4, 0.75, 2.0


class ResponseNorm(nn.LocalResponseNorm):
    """Local response normalisation with the numbers of the paper (section 3.3), within each group of channels: a tower of the
    paper does not see the other one's.

    Args:
        groups: so many.
    """

    def __init__(self, groups: int) -> None:
        super().__init__(LRN_SIZE, LRN_SIZE * LRN_ALPHA, LRN_BETA, LRN_K)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        if self.groups == 1:
            return super().forward(input)
        return torch.cat([super(ResponseNorm, self).forward(part) for part in input.chunk(self.groups, 1)], 1)


def check_image_size(features: nn.Sequential, size: int) -> None:
    """Raises ValueError, with the layer and its size formula, when a layer of `features` is left with no cell."""
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
                f"data.image_size={size} is too small for this net: {name} gets {before} x {before} and gives "
                f"floor(({before} + 2 x {padding} - {kernel}) / {stride}) + 1 = {after}; the smallest size is {smallest}"
            )
        before = after


def _window(layer: nn.Conv2d | nn.MaxPool2d) -> tuple[int, int, int]:
    """Kernel, stride and padding of a layer, which are the same in both directions."""
    values = (layer.kernel_size, layer.stride, layer.padding)
    kernel, stride, padding = (int(value[0]) if isinstance(value, tuple) else int(value) for value in values)
    return kernel, stride, padding
