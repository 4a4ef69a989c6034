"""The AlexNet family: one class, whose variants are YAML files in `conf/model`.

Sources: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012 (the
paper); Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997 (torchvision's net).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alexlab.models.init import init_weights
from alexlab.models.layers import AdaptiveAvgPool2d, ResponseNorm, check_image_size

KERNELS = (11, 5, 3, 3, 3)
STRIDES = (4, 1, 1, 1, 1)
PADDINGS = (2, 2, 1, 1, 1)
POOLED = (1, 2, 5)  # convolutions followed by max pooling
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
        num_classes: number of classes K.
        in_channels: channels of an image, 3 for RGB, 1 for grey.
        width: multiplier of `widths` and `fc_widths`; products are rounded to a multiple of the adjacent layers' groups.
        widths: output channels of the five convolutions.
        fc_widths: output features of the hidden linear layers, of which there may be any number.
        groups: channel groups of each convolution; (1, 2, 1, 2, 2) are the two towers of the paper.
        skip_convs: convolutions to leave out, 1 to 5, with their norm and activation; poolings are kept.
        conv1_padding: padding of conv1.
        pool_kernels: kernel sizes of the three poolings; with `pool_stride=2`, windows of 3 overlap and windows of 2 do not.
        pool_stride: stride of the three poolings.
        pool_size: the features are average-pooled to pool_size x pool_size before the classifier.
        activation: `relu`, `tanh` or another activation of torch.nn, in lower case.
        norm: `none`, `lrn` (`ResponseNorm`) or `batch`.
        norm_layers: convolutions to normalize; None selects conv1 and conv2 for `lrn`, all for `batch`.
        norm_side: whether `batch` comes `before` or `after` the activation; `lrn` always comes after it.
        norm_momentum: weight of the new batch in the running statistics, for `batch`.
        norm_eps: epsilon of `batch`.
        dropout: dropout probability of the hidden linear layers.
        dropout_side: whether to drop the `input` of the hidden linear layers (torchvision) or their `output` (the paper).
        linear_tail: number of hidden linear layers, counted from the last, without activation and dropout.
        init: initialization scheme, see `alexlab.models.init`.

    Raises:
        ValueError: if the arguments do not fit together.
    """

    torchvision_name = "alexnet"  # torchvision model whose weights fit

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
        _check_lengths(widths=widths, groups=groups, pool_kernels=pool_kernels)
        _check_choices(norm=norm, norm_side=norm_side, dropout_side=dropout_side, activation=activation)
        _check_convs(skip_convs=skip_convs, norm_layers=norm_layers or ())
        if width <= 0 or min(*widths, *fc_widths, 1) <= 0:
            raise ValueError(f"every width must be positive; got {width} x {list(widths)} and {list(fc_widths)}")
        if not 0 <= linear_tail <= len(fc_widths):
            raise ValueError(f"model.linear_tail must be in 0..{len(fc_widths)}, the hidden layers; got {linear_tail}")

        convs = [number for number in range(1, 6) if number not in skip_convs]
        if norm_layers is None:
            norm_layers = (1, 2) if norm == "lrn" else convs
        next_groups = dict(zip(convs, [*(groups[number - 1] for number in convs[1:]), 1], strict=False))
        pools = dict(zip(POOLED, pool_kernels, strict=True))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for number in range(1, 6):
            if number in convs:
                # Divisible by the groups of this convolution (outputs) and of the next one (inputs).
                num_towers = max(groups[number - 1], next_groups[number])
                out = _scaled(widths[number - 1], width, num_towers)
                padding = conv1_padding if number == 1 else PADDINGS[number - 1]
                layers[f"conv{number}"] = _conv(number, channels, out, groups=groups[number - 1], padding=padding)
                block: list[tuple[str, nn.Module]] = [(f"act{number}", _activation(activation))]
                if norm == "lrn" and number in norm_layers:
                    block.append((f"norm{number}", ResponseNorm(num_towers)))
                if norm == "batch" and number in norm_layers:
                    batch_norm = nn.BatchNorm2d(out, eps=norm_eps, momentum=norm_momentum)
                    block.insert(0 if norm_side == "before" else 1, (f"norm{number}", batch_norm))
                layers.update(block)
                channels = out
            if number in pools:
                layers[f"pool{number}"] = nn.MaxPool2d(pools[number], pool_stride)
        self.features = nn.Sequential(layers)
        self.avgpool = AdaptiveAvgPool2d(pool_size)
        sizes = [channels * pool_size * pool_size, *(_scaled(count, width, 1) for count in fc_widths), num_classes]
        self.classifier = _classifier(sizes, activation, dropout, dropout_side, linear_tail)
        init_weights(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))

    def check_image_size(self, size: int) -> None:
        """Raise ValueError if an image of size x size does not survive all layers."""
        check_image_size(self.features, size)


def _check_lengths(**values: Sequence[int]) -> None:
    for name, numbers in values.items():
        expected = len(POOLED) if name == "pool_kernels" else len(KERNELS)
        if len(numbers) != expected:
            raise ValueError(f"model.{name} needs {expected} numbers; got {list(numbers)}")


def _check_choices(**values: str) -> None:
    choices = {
        "norm": NORMS,
        "norm_side": ("before", "after"),
        "dropout_side": ("input", "output"),
        "activation": tuple(ACTIVATIONS),
    }
    for name, value in values.items():
        if value not in choices[name]:
            raise ValueError(f"model.{name} must be one of {', '.join(choices[name])}; got {value!r}")


def _check_convs(**values: Sequence[int]) -> None:
    for name, numbers in values.items():
        if not set(numbers) <= set(range(1, 6)):
            raise ValueError(f"model.{name} must contain numbers of convolutions, 1 to 5; got {list(numbers)}")


def _conv(number: int, channels: int, out: int, *, groups: int, padding: int) -> nn.Conv2d:
    if channels % groups or out % groups:
        raise ValueError(f"conv{number} cannot be divided: {channels} -> {out} channels in {groups} groups")
    return nn.Conv2d(channels, out, KERNELS[number - 1], STRIDES[number - 1], padding, groups=groups)


def _scaled(count: int, width: float, multiple: int) -> int:
    return max(1, round(count * width / multiple)) * multiple


def _activation(name: str) -> nn.Module:
    if name == "relu":
        return nn.ReLU(inplace=True)
    layer: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return layer


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
