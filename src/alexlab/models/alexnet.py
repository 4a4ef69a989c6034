"""The AlexNet family: one class, and a variant is a row of numbers in `conf/model`.

Sources: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012 (the
paper); Krizhevsky, "One weird trick", arXiv 1404.5997 (the net of torchvision).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

KERNELS = (11, 5, 3, 3, 3)
STRIDES = (4, 1, 1, 1, 1)
PADDINGS = (2, 2, 1, 1, 1)
POOLED = (1, 2, 5)  # a max pooling follows these convolutions
NORMS = ("none", "lrn", "batch")
# The paper, section 3.3, with its own alpha: PyTorch divides alpha by the size, the paper does not.
LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 1e-4, 0.75, 2.0


class AlexNet(nn.Module):
    """Five convolutions, three poolings and a classifier of linear layers.

    Shapes of the default net for images (N, 3, 224, 224) and 1000 classes:

    | layer | kernel | stride, padding | output         | parameters |
    | ----- | ------ | --------------- | -------------- | ---------- |
    | conv1 | 11     | 4, 2            | 64 x 55 x 55   | 23296      |
    | pool1 | 3      | 2, 0            | 64 x 27 x 27   | 0          |
    | conv2 | 5      | 1, 2            | 192 x 27 x 27  | 307392     |
    | pool2 | 3      | 2, 0            | 192 x 13 x 13  | 0          |
    | conv3 | 3      | 1, 1            | 384 x 13 x 13  | 663936     |
    | conv4 | 3      | 1, 1            | 256 x 13 x 13  | 884992     |
    | conv5 | 3      | 1, 1            | 256 x 13 x 13  | 590080     |
    | pool5 | 3      | 2, 0            | 256 x 6 x 6    | 0          |
    | fc6   | -      | -               | 4096           | 37752832   |
    | fc7   | -      | -               | 4096           | 16781312   |
    | fc8   | -      | -               | 1000           | 4097000    |

    Args:
        num_classes: length of the logits.
        in_channels: channels of an image, 3 for RGB, 1 for grey.
        width: multiplies `widths` and `fc_widths`; a product is rounded to a multiple of its layer's groups.
        widths: output channels of the five convolutions.
        fc_widths: outputs of the hidden linear layers, any number of them.
        groups: groups of each convolution; (1, 2, 1, 2, 2) are the two towers of the paper.
        norm: `none`; `lrn`, local response normalisation after the activation of conv1 and conv2 (the paper, section 3.3);
            `batch`, batch normalisation between each convolution and its activation.
        dropout: probability that a hidden value is dropped.
        dropout_side: `input` drops what enters the hidden linear layers (torchvision), `output` what leaves them (the paper).

    Raises:
        ValueError: when the numbers do not make a net.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        width: float = 1.0,
        widths: Sequence[int] = (64, 192, 384, 256, 256),
        fc_widths: Sequence[int] = (4096, 4096),
        groups: Sequence[int] = (1, 1, 1, 1, 1),
        norm: str = "none",
        dropout: float = 0.5,
        dropout_side: str = "input",
    ) -> None:
        super().__init__()
        for name, values in (("model.widths", widths), ("model.groups", groups)):
            if len(values) != len(KERNELS):
                raise ValueError(f"{name} needs {len(KERNELS)} numbers, one for each convolution; got {list(values)}")
        if width <= 0 or min(*widths, *fc_widths, 1) <= 0:
            raise ValueError(f"every width must be positive; got {width} x {list(widths)} and {list(fc_widths)}")
        if norm not in NORMS:
            raise ValueError(f"model.norm must be one of {', '.join(NORMS)}; got {norm!r}")
        if dropout_side not in ("input", "output"):
            raise ValueError(f"model.dropout_side must be input or output; got {dropout_side!r}")
        # A convolution's channels are divided by its own groups on the way out and by the next one's on the way in.
        scaled = [
            _scaled(count, width, max(own, following))
            for count, own, following in zip(widths, groups, (*groups[1:], 1), strict=True)
        ]
        self.features = _features(in_channels, scaled, groups, norm)
        self.grid = nn.AdaptiveAvgPool2d(6)
        hidden = [_scaled(count, width, 1) for count in fc_widths]
        self.classifier = _classifier([scaled[-1] * 6 * 6, *hidden, num_classes], dropout, dropout_side)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K)."""
        return self.classifier(torch.flatten(self.grid(self.features(images)), 1))

    def check_image_size(self, size: int) -> None:
        """Raises ValueError when an image of size x size is used up before the last pooling."""
        before = size
        for name, layer in self.features.named_children():
            if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                continue
            kernel, stride, padding = _window(layer)
            after = (before + 2 * padding - kernel) // stride + 1
            if after < 1:
                raise ValueError(
                    f"data.image_size={size} is too small for this net: {name} gets {before} x {before} and gives "
                    f"floor(({before} + 2 x {padding} - {kernel}) / {stride}) + 1 = {after}; "
                    f"the smallest size is {self._smallest_image_size()}"
                )
            before = after

    def _smallest_image_size(self) -> int:
        """The smallest input size that leaves at least one cell after every layer."""
        size = 1
        for layer in reversed(list(self.features.children())):
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                kernel, stride, padding = _window(layer)
                size = max(1, (size - 1) * stride + kernel - 2 * padding)
        return size


def _window(layer: nn.Conv2d | nn.MaxPool2d) -> tuple[int, int, int]:
    """Kernel, stride and padding of a layer, which are the same in both directions."""
    values = (layer.kernel_size, layer.stride, layer.padding)
    kernel, stride, padding = (int(value[0]) if isinstance(value, tuple) else int(value) for value in values)
    return kernel, stride, padding


def _scaled(count: int, width: float, multiple: int) -> int:
    return max(1, round(count * width / multiple)) * multiple


def _features(in_channels: int, widths: Sequence[int], groups: Sequence[int], norm: str) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for number, (out, kernel, stride, padding, group) in enumerate(
        zip(widths, KERNELS, STRIDES, PADDINGS, groups, strict=True), start=1
    ):
        if channels % group or out % group:
            raise ValueError(f"conv{number} cannot be divided: {channels} -> {out} channels in model.groups={group}")
        layers[f"conv{number}"] = nn.Conv2d(channels, out, kernel, stride, padding, groups=group)
        if norm == "batch":
            layers[f"norm{number}"] = nn.BatchNorm2d(out)
        layers[f"act{number}"] = nn.ReLU(inplace=True)
        if norm == "lrn" and number <= 2:
            layers[f"norm{number}"] = nn.LocalResponseNorm(LRN_SIZE, LRN_SIZE * LRN_ALPHA, LRN_BETA, LRN_K)
        if number in POOLED:
            layers[f"pool{number}"] = nn.MaxPool2d(3, 2)
        channels = out
    return nn.Sequential(layers)


def _classifier(sizes: Sequence[int], dropout: float, side: str) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    hidden = len(sizes) - 2
    for index in range(hidden):
        number = len(KERNELS) + 1 + index
        if side == "input":
            layers[f"drop{number}"] = nn.Dropout(dropout)
        layers[f"fc{number}"] = nn.Linear(sizes[index], sizes[index + 1])
        layers[f"act{number}"] = nn.ReLU(inplace=True)
        if side == "output":
            layers[f"drop{number}"] = nn.Dropout(dropout)
    layers[f"fc{len(KERNELS) + 1 + hidden}"] = nn.Linear(sizes[-2], sizes[-1])
    return nn.Sequential(layers)
