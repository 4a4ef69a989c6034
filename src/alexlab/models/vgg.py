"""The VGG family (Simonyan, Zisserman, arXiv 1409.1556): one class, whose variants are YAML files in `conf/model`."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alexlab.models.init import init_weights
from alexlab.models.layers import AdaptiveAvgPool2d, check_image_size

# vgg11, vgg13, vgg16 and vgg19: configurations A, B, D and E of the paper.
TORCHVISION_DEPTHS = ((1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4))


class VGG(nn.Module):
    """Blocks of 3 x 3 convolutions with ReLU, each followed by max pooling, and a classifier of linear layers.

    Shapes of the default net, VGG11, for images (N, 3, 224, 224) and 1000 classes:

    | layer   | kernel | stride, padding | output          | parameters |
    | ------- | ------ | --------------- | --------------- | ---------- |
    | conv1_1 | 3      | 1, 1            | 64 x 224 x 224  | 1792       |
    | pool1   | 2      | 2, 0            | 64 x 112 x 112  | 0          |
    | conv2_1 | 3      | 1, 1            | 128 x 112 x 112 | 73856      |
    | pool2   | 2      | 2, 0            | 128 x 56 x 56   | 0          |
    | conv3_1 | 3      | 1, 1            | 256 x 56 x 56   | 295168     |
    | conv3_2 | 3      | 1, 1            | 256 x 56 x 56   | 590080     |
    | pool3   | 2      | 2, 0            | 256 x 28 x 28   | 0          |
    | conv4_1 | 3      | 1, 1            | 512 x 28 x 28   | 1180160    |
    | conv4_2 | 3      | 1, 1            | 512 x 28 x 28   | 2359808    |
    | pool4   | 2      | 2, 0            | 512 x 14 x 14   | 0          |
    | conv5_1 | 3      | 1, 1            | 512 x 14 x 14   | 2359808    |
    | conv5_2 | 3      | 1, 1            | 512 x 14 x 14   | 2359808    |
    | pool5   | 2      | 2, 0            | 512 x 7 x 7     | 0          |
    | fc1     | -      | -               | 4096            | 102764544  |
    | fc2     | -      | -               | 4096            | 16781312   |
    | fc3     | -      | -               | 1000            | 4097000    |

    Args:
        num_classes: number of classes K.
        in_channels: channels of an image.
        width: multiplier of the widths of all layers.
        depths: number of convolutions of each block.
        widths: output channels of each block.
        fc_widths: output features of the hidden linear layers.
        pool_size: the features are average-pooled to pool_size x pool_size before the classifier.
        dropout: dropout probability of the hidden linear layers' outputs.
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
        depths: Sequence[int] = (1, 1, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        fc_widths: Sequence[int] = (4096, 4096),
        pool_size: int = 7,
        dropout: float = 0.5,
        init: str = "torch",
    ) -> None:
        super().__init__()
        if len(depths) != len(widths) or min(*depths, *widths, *fc_widths, 1) < 1 or width <= 0:
            raise ValueError(
                "model.depths and model.widths must have one positive number per block, and all widths must be "
                f"positive; got {list(depths)}, {list(widths)}, {list(fc_widths)} and width {width}"
            )
        features: OrderedDict[str, nn.Module] = OrderedDict()
        if pool_size < 1:
            raise ValueError(f"model.pool_size must be at least 1; got {pool_size}")
        channels = in_channels
        for block, (depth, count) in enumerate(zip(depths, widths, strict=True), start=1):
            out = max(1, round(count * width))
            for layer in range(1, depth + 1):
                features[f"conv{block}_{layer}"] = nn.Conv2d(channels, out, 3, padding=1)
                features[f"act{block}_{layer}"] = nn.ReLU(inplace=True)
                channels = out
            features[f"pool{block}"] = nn.MaxPool2d(2, 2)
        self.features = nn.Sequential(features)
        self.avgpool = AdaptiveAvgPool2d(pool_size)
        sizes = [channels * pool_size * pool_size, *(max(1, round(count * width)) for count in fc_widths)]
        classifier: OrderedDict[str, nn.Module] = OrderedDict()
        for number in range(1, len(sizes)):
            classifier[f"fc{number}"] = nn.Linear(sizes[number - 1], sizes[number])
            classifier[f"act{number}"] = nn.ReLU(inplace=True)
            classifier[f"drop{number}"] = nn.Dropout(dropout)
        classifier[f"fc{len(sizes)}"] = nn.Linear(sizes[-1], num_classes)
        self.classifier = nn.Sequential(classifier)
        init_weights(self, init)
        self.torchvision_name = f"vgg{sum(depths) + 3}" if tuple(depths) in TORCHVISION_DEPTHS else None

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))

    def check_image_size(self, size: int) -> None:
        """Raise ValueError if an image of size x size does not survive all layers."""
        check_image_size(self.features, size)
