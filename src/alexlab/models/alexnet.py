"""The AlexNet family: one class, and a variant is a row of numbers in `conf/model`.

Sources: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012 (the
paper); Krizhevsky, "One weird trick", arXiv 1404.5997 (the net of torchvision).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alexlab.models.init import init_weights
from alexlab.models.layers import ResponseNorm, check_image_size

KERNELS = (11, 5, 3, 3, 3)
STRIDES = (4, 1, 1, 1, 1)
PADDINGS = (2, 2, 1, 1, 1)
POOLED = (1, 2, 5)  # a max pooling follows these convolutions
NORMS = ("none", "lrn", "batch")
ACTIVATIONS = {name.lower(): name for name in nn.modules.activation.__all__ if name != "MultiheadAttention"}


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
        skip_convs: numbers of convolutions to leave out, 1 to 5, with their norm and activation; the poolings stay.
        conv1_padding: padding of conv1.
        pool_kernels: kernels of the three poolings; with `pool_stride` 2, a 3 overlaps and a 2 does not.
        pool_stride: their stride.
        pool_size: the classifier sees pool_size x pool_size cells; features of another size are averaged to it.
        activation: `relu`, `tanh` or another activation of torch.nn, in small letters.
        norm: `none`, `lrn` (`ResponseNorm`) or `batch`.
        norm_layers: convolutions that are normalised; None takes conv1 and conv2 for `lrn`, all for `batch`.
        norm_side: `before` or `after` the activation, for `batch`; `lrn` is after it always.
        norm_momentum: of `batch`: the weight of the new statistics.
        norm_eps: of `batch`.
        dropout: probability that a hidden value is dropped.
        dropout_side: `input` drops what enters the hidden linear layers (torchvision), `output` what leaves them (the paper).
        linear_tail: so many of the last hidden linear layers have neither activation nor dropout.
        init: see `alexlab.models.init`.

    Raises:
        ValueError: when the numbers do not make a net.
    """

    torchvision_name = "alexnet"  # whose weights fit

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        width: float = 1.0,
        widths: Sequence[int] = (64, 192, 384, 256, 256),
        fc_widths: Sequence[int] = (4096, 4096),
        groups: Sequence[int] = (1, 1, 1, 1, 1),
        skip_convs: Sequence[int] = (),
        conv1_padding: int = 2,
        pool_kernels: Sequence[int] = (3, 3, 3),
        pool_stride: int = 2,
        pool_size: int = 6,
        activation: str = "relu",
        norm: str = "none",
        norm_layers: Sequence[int] | None = None,
        norm_side: str = "before",
        norm_momentum: float = 0.1,
        norm_eps: float = 1e-5,
        dropout: float = 0.5,
        dropout_side: str = "input",
        linear_tail: int = 0,
        init: str = "torch",
    ) -> None:
        super().__init__()
        for name, values, needed in (("widths", widths, 5), ("groups", groups, 5), ("pool_kernels", pool_kernels, 3)):
            if len(values) != needed:
                raise ValueError(f"model.{name} needs {needed} numbers; got {list(values)}")
        if width <= 0 or min(*widths, *fc_widths, 1) <= 0:
            raise ValueError(f"every width must be positive; got {width} x {list(widths)} and {list(fc_widths)}")
        for name, value, choices in (
            ("norm", norm, NORMS),
            ("norm_side", norm_side, ("before", "after")),
            ("dropout_side", dropout_side, ("input", "output")),
            ("activation", activation, tuple(ACTIVATIONS)),
        ):
            if value not in choices:
                raise ValueError(f"model.{name} must be one of {', '.join(choices)}; got {value!r}")
        for name, numbers in (("skip_convs", skip_convs), ("norm_layers", norm_layers or ())):
            if not set(numbers) <= set(range(1, 6)):
                raise ValueError(f"model.{name} must hold numbers of convolutions, 1 to 5; got {list(numbers)}")
        if not 0 <= linear_tail <= len(fc_widths):
            raise ValueError(
                f"model.linear_tail must be at most the {len(fc_widths)} hidden linear layers; got {linear_tail}"
            )

        kept = [number for number in range(1, 6) if number not in skip_convs]
        normed = set(norm_layers if norm_layers is not None else (1, 2) if norm == "lrn" else kept)
        pools = dict(zip(POOLED, pool_kernels, strict=True))
        following = dict(zip(kept, [groups[number - 1] for number in kept[1:]] + [1], strict=True)) if kept else {}
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for number in range(1, 6):
            if number in kept:
                index = number - 1
                # A convolution's channels are divided by its own groups on the way out and by the next one's on the way in.
                out = _scaled(widths[index], width, max(groups[index], following[number]))
                padding = conv1_padding if number == 1 else PADDINGS[index]
                if channels % groups[index] or out % groups[index]:
                    raise ValueError(
                        f"conv{number} cannot be divided: {channels} -> {out} channels in {groups[index]} groups"
                    )
                layers[f"conv{number}"] = nn.Conv2d(
                    channels, out, KERNELS[index], STRIDES[index], padding, groups=groups[index]
                )
                block: list[tuple[str, nn.Module]] = [(f"act{number}", _activation(activation))]
                if norm == "lrn" and number in normed:
                    lrn = ResponseNorm(max(groups[index], following[number]))
                    block.append((f"norm{number}", lrn))
                if norm == "batch" and number in normed:
                    batch = nn.BatchNorm2d(out, eps=norm_eps, momentum=norm_momentum)
                    block.insert(0 if norm_side == "before" else 1, (f"norm{number}", batch))
                layers.update(block)
                channels = out
            if number in pools:
                layers[f"pool{number}"] = nn.MaxPool2d(pools[number], pool_stride)
        self.features = nn.Sequential(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(pool_size)
        hidden = [_scaled(count, width, 1) for count in fc_widths]
        sizes = [channels * pool_size * pool_size, *hidden, num_classes]
        self.classifier = _classifier(sizes, activation, dropout, dropout_side, linear_tail)
        init_weights(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))

    def check_image_size(self, size: int) -> None:
        """Raises ValueError when an image of size x size is used up before the last pooling."""
        check_image_size(self.features, size)


def _scaled(count: int, width: float, multiple: int) -> int:
    return max(1, round(count * width / multiple)) * multiple


def _activation(name: str) -> nn.Module:
    if name == "relu":
        return nn.ReLU(inplace=True)
    made: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return made


def _classifier(sizes: Sequence[int], activation: str, dropout: float, side: str, plain: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    hidden = len(sizes) - 2
    for index in range(hidden):
        number = len(KERNELS) + 1 + index
        if side == "input" and index < hidden - plain:
            layers[f"drop{number}"] = nn.Dropout(dropout)
        layers[f"fc{number}"] = nn.Linear(sizes[index], sizes[index + 1])
        if index < hidden - plain:
            layers[f"act{number}"] = _activation(activation)
            if side == "output":
                layers[f"drop{number}"] = nn.Dropout(dropout)
    layers[f"fc{len(KERNELS) + 1 + hidden}"] = nn.Linear(sizes[-2], sizes[-1])
    return nn.Sequential(layers)
