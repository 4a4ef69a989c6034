"""GoogLeNet, Inception v1 (Szegedy et al., arXiv 1409.4842), without auxiliary heads and without batch normalization."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from alexlab.models.init import init_weights
from alexlab.models.layers import check_image_size

# Table 1 of the paper: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection.
WIDTHS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Inception block: four branches over the same input, concatenated by channel, with a ReLU after every convolution."""

    def __init__(
        self, channels: int, one: int, reduce3: int, three: int, reduce5: int, five: int, project: int
    ) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(nn.Conv2d(channels, one, 1), nn.ReLU(inplace=True))
        self.branch3 = _reduced(channels, reduce3, three, 3)
        self.branch5 = _reduced(channels, reduce5, five, 5)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.project = nn.Sequential(nn.Conv2d(channels, project, 1), nn.ReLU(inplace=True))
        self.out_channels = one + three + five + project

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, H, W)."""
        branches = [self.branch1(images), self.branch3(images), self.branch5(images), self.project(self.pool(images))]
        return torch.cat(branches, 1)


class GoogLeNet(nn.Module):
    """Stem of three convolutions, nine inception blocks, global average pooling and one linear layer.

    Shapes for images (N, 3, 224, 224) and 1000 classes:

    | layer       | kernel | stride, padding | output          | parameters |
    | ----------- | ------ | --------------- | --------------- | ---------- |
    | conv1       | 7      | 2, 3            | 64 x 112 x 112  | 9472       |
    | pool1       | 3      | 2, 1            | 64 x 56 x 56    | 0          |
    | conv2       | 1      | 1, 0            | 64 x 56 x 56    | 4160       |
    | conv3       | 3      | 1, 1            | 192 x 56 x 56   | 110784     |
    | pool2       | 3      | 2, 1            | 192 x 28 x 28   | 0          |
    | inception3a | -      | -               | 256 x 28 x 28   | 163696     |
    | inception3b | -      | -               | 480 x 28 x 28   | 388736     |
    | pool3       | 3      | 2, 1            | 480 x 14 x 14   | 0          |
    | inception4a | -      | -               | 512 x 14 x 14   | 376176     |
    | inception4b | -      | -               | 512 x 14 x 14   | 449160     |
    | inception4c | -      | -               | 512 x 14 x 14   | 510104     |
    | inception4d | -      | -               | 528 x 14 x 14   | 605376     |
    | inception4e | -      | -               | 832 x 14 x 14   | 868352     |
    | pool4       | 3      | 2, 1            | 832 x 7 x 7     | 0          |
    | inception5a | -      | -               | 832 x 7 x 7     | 1043456    |
    | inception5b | -      | -               | 1024 x 7 x 7    | 1444080    |
    | fc          | -      | -               | 1000            | 1025000    |

    Args:
        num_classes: number of classes K.
        in_channels: channels of an image.
        width: multiplier of the widths of all convolutions.
        stem_relu: add a ReLU after conv2 and conv3, as in the paper; "Dive into Deep Learning" has none.
        dropout: dropout probability before the linear layer; 0.4 in the paper.
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
        stem_relu: bool = True,
        dropout: float = 0.0,
        init: str = "torch",
    ) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"model.width must be positive; got {width}")

        def scaled(count: int) -> int:
            return max(1, round(count * width))

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Conv2d(in_channels, scaled(64), 7, 2, 3)
        layers["act1"] = nn.ReLU(inplace=True)
        layers["pool1"] = nn.MaxPool2d(3, 2, 1)
        layers["conv2"] = nn.Conv2d(scaled(64), scaled(64), 1)
        if stem_relu:
            layers["act2"] = nn.ReLU(inplace=True)
        layers["conv3"] = nn.Conv2d(scaled(64), scaled(192), 3, padding=1)
        if stem_relu:
            layers["act3"] = nn.ReLU(inplace=True)
        layers["pool2"] = nn.MaxPool2d(3, 2, 1)
        channels = scaled(192)
        for name, widths in WIDTHS.items():
            block = Inception(channels, *(scaled(count) for count in widths))
            layers[f"inception{name}"] = block
            channels = block.out_channels
            if name in ("3b", "4e"):
                layers[f"pool{name[0]}"] = nn.MaxPool2d(3, 2, 1)
        self.features = nn.Sequential(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return self.fc(self.dropout(torch.flatten(self.avgpool(self.features(images)), 1)))

    def check_image_size(self, size: int) -> None:
        """Raise ValueError if an image of size x size does not survive all layers; this net accepts any size."""
        check_image_size(self.features, size)


def _reduced(channels: int, reduced: int, out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, reduced, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(reduced, out, kernel, padding=kernel // 2),
        nn.ReLU(inplace=True),
    )
