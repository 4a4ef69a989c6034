"""How convolutions and poolings use an image up."""

from torch import nn


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
