"""Network in network (Lin, Chen, Yan, arXiv 1312.4400), with the kernel sizes of "Dive into Deep Learning"."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alexlab.models.init import init_weights
from alexlab.models.layers import check_image_size

KERNELS = (11, 5, 3, 3)
STRIDES = (4, 1, 1, 1)
PADDINGS = (0, 2, 1, 1)


class NiN(nn.Module):
    """Four blocks of a convolution and two 1 x 1 convolutions with ReLUs; the last block outputs one map per class.

    Shapes for images (N, 3, 224, 224) and 1000 classes:

    | layer   | kernel | stride, padding | output        | parameters |
    | ------- | ------ | --------------- | ------------- | ---------- |
    | conv1_1 | 11     | 4, 0            | 96 x 54 x 54  | 34944      |
    | conv1_2 | 1      | 1, 0            | 96 x 54 x 54  | 9312       |
    | conv1_3 | 1      | 1, 0            | 96 x 54 x 54  | 9312       |
    | pool1   | 3      | 2, 0            | 96 x 26 x 26  | 0          |
    | conv2_1 | 5      | 1, 2            | 256 x 26 x 26 | 614656     |
    | conv2_2 | 1      | 1, 0            | 256 x 26 x 26 | 65792      |
    | conv2_3 | 1      | 1, 0            | 256 x 26 x 26 | 65792      |
    | pool2   | 3      | 2, 0            | 256 x 12 x 12 | 0          |
    | conv3_1 | 3      | 1, 1            | 384 x 12 x 12 | 885120     |
    | conv3_2 | 1      | 1, 0            | 384 x 12 x 12 | 147840     |
    | conv3_3 | 1      | 1, 0            | 384 x 12 x 12 | 147840     |
    | pool3   | 3      | 2, 0            | 384 x 5 x 5   | 0          |
    | conv4_1 | 3      | 1, 1            | 1000 x 5 x 5  | 3457000    |
    | conv4_2 | 1      | 1, 0            | 1000 x 5 x 5  | 1001000    |
    | conv4_3 | 1      | 1, 0            | 1000 x 5 x 5  | 1001000    |

    Args:
        num_classes: number of classes K.
        in_channels: channels of an image.
        width: multiplier of `widths`.
        widths: output channels of the first three blocks.
        dropout: dropout probability before the last block.
        init: initialization scheme, see `alexlab.models.init`.

    Raises:
        ValueError: if the arguments do not fit together.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        width: float = 1.0,
        widths: Sequence[int] = (96, 256, 384),
        dropout: float = 0.5,
        init: str = "torch",
    ) -> None:
        super().__init__()
        if len(widths) != 3 or min(widths) < 1 or width <= 0:
            raise ValueError(
                f"model.widths needs 3 positive numbers and a positive width; got {list(widths)} and {width}"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        outs = [*(max(1, round(count * width)) for count in widths), num_classes]
        for block, (out, kernel, stride, padding) in enumerate(
            zip(outs, KERNELS, STRIDES, PADDINGS, strict=True), start=1
        ):
            if block == 4:
                layers["drop4"] = nn.Dropout(dropout)
            layers[f"conv{block}_1"] = nn.Conv2d(channels, out, kernel, stride, padding)
            layers[f"act{block}_1"] = nn.ReLU(inplace=True)
            for number in (2, 3):
                layers[f"conv{block}_{number}"] = nn.Conv2d(out, out, 1)
                layers[f"act{block}_{number}"] = nn.ReLU(inplace=True)
            if block < 4:
                layers[f"pool{block}"] = nn.MaxPool2d(3, 2)
            channels = out
        self.features = nn.Sequential(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        init_weights(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return torch.flatten(self.avgpool(self.features(images)), 1)

    def check_image_size(self, size: int) -> None:
        """Raise ValueError if an image of size x size does not survive all layers."""
        check_image_size(self.features, size)
