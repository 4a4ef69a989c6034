"""The AlexNet family: one class, whose variants are YAML files in `conf/model`.

Sources: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012 (the
paper); Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997 (torchvision's net).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alexlab.models.init import init_weights
from alexlab.models.layers import AdaptiveAvgPool2d, CeilConv2d, MapNorm, ResponseNorm, check_image_size

POOLS: dict[str, Callable[..., nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
# Order of the layers of a convolution's block, of which all but the convolution and the activation are optional.
ORDERS = {
    "before": ("conv", "norm", "spatial", "act", "pool"),
    "after": ("conv", "act", "norm", "spatial", "pool"),
    "after_pool": ("conv", "act", "pool", "norm", "spatial"),
}
ACTIVATIONS = {name.lower(): name for name in nn.modules.activation.__all__ if name != "MultiheadAttention"}
CHOICES = {
    "norm": ("none", "lrn", "batch"),
    "norm_side": tuple(ORDERS),
    "pool_kinds": tuple(POOLS),
    "activation": tuple(ACTIVATIONS),
    "dropout_side": ("input", "output"),
}


class AlexNet(nn.Module):
    """Convolutions, of which some are followed by a pooling, and a classifier of linear layers.

    Each key of a convolution is a list with one entry per convolution, numbered from 1; each key of a pooling is a list with
    one entry per pooling. The linear layers are numbered on from the convolutions.

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
        widths: output channels of the convolutions.
        kernels, strides, paddings: kernel sizes, strides and paddings of the convolutions.
        groups: channel groups of the convolutions; (1, 2, 1, 2, 2) are the two towers of the paper.
        conv_ceil: add zeros at the right and bottom so that the sizes of the outputs are rounded up, as in cuda-convnet.
        skip_convs: convolutions to leave out, with their norm and activation; pooling layers are kept.
        pool_layers: convolutions that are followed by a pooling.
        pool_kinds: `max` or `avg` for each pooling.
        pool_kernels, pool_strides: kernel sizes and strides of the pooling layers; windows of 3 with a stride of 2 overlap.
        pool_ceil: round the sizes of the pooling layers' outputs up, as in Caffe and cuda-convnet.
        pool_size: the features are average-pooled to pool_size x pool_size before the classifier.
        fc_widths: output features of the hidden linear layers, of which there may be any number.
        activation: `relu`, `tanh` or another activation of torch.nn, in lower case.
        norm: `none`, `lrn` (`ResponseNorm`) or `batch`.
        norm_layers: layers to normalize, for `batch` also hidden linear layers; None selects conv1 and conv2 for `lrn`, all
            convolutions for `batch`.
        norm_side: place of the norms, `before` or `after` the activation or `after_pool`, for all convolutions or one for each;
            None is `after` for `lrn`, `before` for `batch`. Hidden linear layers use that of the last convolution.
        norm_momentum: weight of the new batch in the running statistics, for `batch`.
        norm_eps: epsilon of `batch`.
        lrn_size, lrn_alpha, lrn_k: constants of `ResponseNorm`; alpha is divided by the size.
        lrn_across_towers: whether neighbouring channels in the other group count too, as in Caffe.
        spatial_layers: convolutions with a `MapNorm`, which follows their norm.
        spatial_size, spatial_alpha: constants of `MapNorm`; alpha is divided by the number of cells of the window.
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
        kernels: Sequence[int] = (11, 5, 3, 3, 3),
        strides: Sequence[int] = (4, 1, 1, 1, 1),
        paddings: Sequence[int] = (2, 2, 1, 1, 1),
        groups: Sequence[int] = (1, 1, 1, 1, 1),
        conv_ceil: bool = False,
        skip_convs: Sequence[int] = (),
        pool_layers: Sequence[int] = (1, 2, 5),
        pool_kinds: Sequence[str] = ("max", "max", "max"),
        pool_kernels: Sequence[int] = (3, 3, 3),
        pool_strides: Sequence[int] = (2, 2, 2),
        pool_ceil: bool = False,
        pool_size: int = 6,
        fc_widths: Sequence[int] = (4096, 4096),
        activation: str = "relu",
        norm: str = "none",
        norm_layers: Sequence[int] | None = None,
        norm_side: str | Sequence[str] | None = None,
        norm_momentum: float = 0.1,
        norm_eps: float = 1e-5,
        lrn_size: int = 5,
        lrn_alpha: float = 5e-4,
        lrn_k: float = 2.0,
        lrn_across_towers: bool = False,
        spatial_layers: Sequence[int] = (),
        spatial_size: int = 5,
        spatial_alpha: float = 1e-3,
        dropout: float = 0.5,
        dropout_side: str = "input",
        linear_tail: int = 0,
        init: str = "torch",
    ) -> None:
        super().__init__()
        convs = {"widths": widths, "kernels": kernels, "strides": strides, "paddings": paddings, "groups": groups}
        pools = {"pool_kinds": pool_kinds, "pool_kernels": pool_kernels, "pool_strides": pool_strides}
        if norm_side is None:
            norm_side = "after" if norm == "lrn" else "before"
        sides = [norm_side] * len(widths) if isinstance(norm_side, str) else norm_side
        _check_lengths("convolution", **convs, **({} if isinstance(norm_side, str) else {"norm_side": sides}))
        _check_lengths("pooling", pool_layers=pool_layers, **pools)
        _check_values(**convs, **pools, fc_widths=fc_widths, norm_side=sides, norm=[norm], activation=[activation])
        _check_values(
            dropout_side=[dropout_side], lrn_size=[lrn_size], spatial_size=[spatial_size], pool_size=[pool_size]
        )
        num_normed = len(widths) + (len(fc_widths) if norm == "batch" else 0)
        _check_layers(len(widths), skip_convs=skip_convs, pool_layers=pool_layers, spatial_layers=spatial_layers)
        _check_layers(num_normed, norm_layers=norm_layers or ())
        if norm_layers and norm == "none":
            raise ValueError(f"model.norm must be lrn or batch with model.norm_layers={list(norm_layers)}; got none")
        for name, value in {"width": width, "lrn_k": lrn_k}.items():
            if value <= 0:
                raise ValueError(f"model.{name} must be positive; got {value}")
        if not 0 <= linear_tail <= len(fc_widths):
            raise ValueError(f"model.linear_tail must be in 0..{len(fc_widths)}, the hidden layers; got {linear_tail}")

        skipped = set(skip_convs)
        kept = [number for number in range(1, len(widths) + 1) if number not in skipped]
        next_groups = dict(zip(kept, [*(groups[number - 1] for number in kept[1:]), 1], strict=False))
        if norm_layers is None:
            norm_layers = (1, 2) if norm == "lrn" else kept
        normed, spatial = set(norm_layers if norm != "none" else ()), set(spatial_layers)
        pooling = dict(zip(pool_layers, zip(*pools.values(), strict=True), strict=True))
        self.features = nn.Sequential()
        channels = in_channels
        for number, (count, *window, num_groups) in enumerate(zip(*convs.values(), strict=True), start=1):
            block: dict[str, nn.Module] = {}
            if number not in skipped:
                # Divisible by the groups of this convolution (outputs) and of the next one (inputs).
                towers = max(num_groups, next_groups[number])
                out = _scaled(count, width, towers)
                block["conv"] = _conv(number, channels, out, window, groups=num_groups, ceil=conv_ceil)
                block["act"] = _activation(activation)
                if number in normed and norm == "lrn":
                    block["norm"] = ResponseNorm(
                        1 if lrn_across_towers else towers, size=lrn_size, alpha=lrn_alpha, k=lrn_k
                    )
                elif number in normed:
                    block["norm"] = nn.BatchNorm2d(out, norm_eps, norm_momentum)
                if number in spatial:
                    block["spatial"] = MapNorm(spatial_size, spatial_alpha)
                channels = out
            if number in pooling:
                kind, *pool_window = pooling[number]
                block["pool"] = POOLS[kind](*pool_window, ceil_mode=pool_ceil)
            _add(self.features, number, block, ORDERS[sides[number - 1]])
        self.avgpool = AdaptiveAvgPool2d(pool_size)

        sizes = [channels * pool_size * pool_size, *(_scaled(count, width, 1) for count in fc_widths)]
        self.classifier = nn.Sequential()
        for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=len(widths) + 1):
            block = {"fc": nn.Linear(inputs, outputs)}
            if number in normed:
                block["norm"] = nn.BatchNorm1d(outputs, norm_eps, norm_momentum)
            if number <= len(widths) + len(fc_widths) - linear_tail:
                block |= {"act": _activation(activation), "drop": nn.Dropout(dropout)}
            order = ("fc", *ORDERS[sides[-1]])
            _add(self.classifier, number, block, ("drop", *order) if dropout_side == "input" else (*order, "drop"))
        self.classifier.add_module(f"fc{len(widths) + len(sizes)}", nn.Linear(sizes[-1], num_classes))
        init_weights(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))

    def check_image_size(self, size: int) -> None:
        """Raise ValueError if an image of size x size does not survive all layers."""
        check_image_size(self.features, size)


def _check_lengths(kind: str, **lists: Sequence[Any]) -> None:
    lengths = [str(len(values)) for values in lists.values()]
    if len(set(lengths)) > 1:
        names = [f"model.{name}" for name in lists]
        raise ValueError(f"{_joined(names)} must have one entry per {kind}; got {_joined(lengths)} entries")


def _joined(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _check_values(**lists: Sequence[Any]) -> None:
    for name, values in lists.items():
        choices, least = CHOICES.get(name), 0 if name == "paddings" else 1
        for value in values:
            if choices and value not in choices:
                raise ValueError(f"model.{name} must be one of {', '.join(choices)}; got {value!r}")
            if not choices and value < least:
                raise ValueError(f"model.{name} must be at least {least}; got {value}")


def _check_layers(last: int, **lists: Sequence[int]) -> None:
    for name, numbers in lists.items():
        if not set(numbers) <= set(range(1, last + 1)) or len(set(numbers)) < len(numbers):
            raise ValueError(f"model.{name} must contain distinct numbers of layers, 1 to {last}; got {list(numbers)}")


def _conv(number: int, channels: int, out: int, window: Sequence[int], *, groups: int, ceil: bool) -> nn.Conv2d:
    if channels % groups or out % groups:
        raise ValueError(
            f"model.widths must be divisible by model.groups: conv{number} maps {channels} to {out} channels in {groups} groups"
        )
    kernel, stride, padding = window
    return (CeilConv2d if ceil else nn.Conv2d)(channels, out, kernel, stride, padding, groups=groups)


def _scaled(count: int, width: float, multiple: int) -> int:
    return max(1, round(count * width / multiple)) * multiple


def _activation(name: str) -> nn.Module:
    if name == "relu":
        return nn.ReLU(inplace=True)
    layer: nn.Module = getattr(nn, ACTIVATIONS[name])()
    return layer


def _add(net: nn.Sequential, number: int, block: Mapping[str, nn.Module], order: Sequence[str]) -> None:
    """Add the layers of a block that exist, in an order of their kinds."""
    for name in order:
        if name in block:
            net.add_module(f"{name}{number}", block[name])
