"""Layers of each net as listed in its source, independent of `alexlab.models`: parameters, multiply-adds, reference modules.

Notation: `64x11/4,2` is a convolution of 64 kernels of 11 x 11 with stride 4 and padding 2 (`g2`: in two groups), `Z3` three
columns and rows of zeros at the right and bottom, `P3/2` max pooling and `V3/2` average pooling (`P3/2,1`: with padding 1;
`P3/2^`: rounded up), `R` ReLU, `T` tanh, `L5:1e-4:2g2` response normalization of 5 neighbours within 2 groups with alpha (of the
sum) and k, `M3:5e-5` normalization within maps of windows of 3 x 3, `B` batch normalization (`B1e-3`: its epsilon), `A` average
pooling to one value, `D.5` dropout, `F10` a linear layer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Listed:
    """Net of a source: image (channels, size, size), number of outputs, lists of layers."""

    channels: int
    size: int
    outputs: int
    features: str
    classifier: str = ""


# "ImageNet classification with deep convolutional neural networks", sections 3.3 and 3.5; its text does not divide alpha by n.
LRN = "L5:1e-4:2"
# layers-145.cfg and layer-params-145-2010.cfg: scale .0001 is divided by the 5 neighbours, .001 of cnorm2 by 25 cells.
AUTHORS = (
    "Z3 96x11/4,0 L5:2e-5:2g2 R P3/2^ 256x5/1,2g2 R L5:2e-5:2g2 M5:4e-5 P3/2^ "
    "384x3/1,1 R 384x3/1,1g2 R 256x3/1,1g2 R P3/2^"
)
HIDDEN = "F4096 R D.5 F4096 R D.5 F1000"
LISTS = {
    "alexnet": Listed(
        3, 224, 1000,
        "64x11/4,2 R P3/2 192x5/1,2 R P3/2 384x3/1,1 R 256x3/1,1 R 256x3/1,1 R P3/2",
        "D.5 F4096 R D.5 F4096 R F1000",
    ),
    "alexnet_two_tower": Listed(
        3, 224, 1000,
        f"96x11/4,2 R {LRN}g2 P3/2 256x5/1,2g2 R {LRN}g2 P3/2 384x3/1,1 R 384x3/1,1g2 R 256x3/1,1g2 R P3/2",
        HIDDEN,
    ),
    "alexnet_authors": Listed(3, 224, 1000, AUTHORS, HIDDEN),
    "alexnet_six_convs": Listed(3, 224, 1000, f"{AUTHORS} 256x3/1,1 R", HIDDEN),
    "alexnet_half": Listed(
        3, 224, 1000,
        "48x11/4,2 R P3/2 128x5/1,2 R P3/2 192x3/1,1 R 192x3/1,1 R 128x3/1,1 R P3/2",
        "D.5 F2048 R D.5 F2048 R F1000",
    ),
    "alexnet_quarter": Listed(
        3, 224, 1000,
        "24x11/4,2 R P3/2 64x5/1,2 R P3/2 96x3/1,1 R 96x3/1,1 R 64x3/1,1 R P3/2",
        "D.5 F1024 R D.5 F1024 R F1000",
    ),
    "alexnet_catdog": Listed(
        3, 224, 2,
        "48x11/4,2 R P2/2 128x5/1,2 R P2/2 192x3/1,1 R 192x3/1,1 R 128x3/1,1 R P3/2",
        "F2048 R D.5 F2048 R D.5 F1000 F2",
    ),
    "alexnet_narrow": Listed(
        3, 224, 1000,
        "96x11/4,2 R P3/2 256x5/1,2 R P3/2 384x3/1,1 R 384x3/1,1 R 256x3/1,1 R P3/2",
        "D.5 F2048 R D.5 F2048 R F1000",
    ),
    "alexnet_d2l": Listed(
        1, 224, 10,
        "96x11/4,0 R P3/2 256x5/1,2 R P3/2 384x3/1,1 R 384x3/1,1 R 256x3/1,1 R P3/2",
        "F4096 R D.5 F10",
    ),
    "alexnet_catdog_tf": Listed(
        3, 224, 1,
        "48x11/4,0 R B1e-3 P3/2 128x5/1,2 R B1e-3 P3/2 192x3/1,1 R 192x3/1,1 R 128x3/1,1 R P3/2",
        "F1024 R D.25 F1024 R D.25 F1",
    ),
    "alexnet_catdog_tf_bn": Listed(
        3, 224, 1,
        "48x11/4,0 R B1e-3 P3/2 128x5/1,2 R B1e-3 P3/2 192x3/1,1 R B1e-3 192x3/1,1 R B1e-3 128x3/1,1 R B1e-3 P3/2",
        "F1024 R D.25 F1024 R D.25 F1",
    ),
    # Simonyan, Zisserman: arXiv 1409.1556, table 1, configuration A.
    "vgg11": Listed(
        1, 224, 10,
        "64x3/1,1 R P2/2 128x3/1,1 R P2/2 256x3/1,1 R 256x3/1,1 R P2/2 512x3/1,1 R 512x3/1,1 R P2/2 "
        "512x3/1,1 R 512x3/1,1 R P2/2",
        "F4096 R D.5 F4096 R D.5 F10",
    ),
    "vgg11_eighth": Listed(
        1, 224, 10,
        "8x3/1,1 R P2/2 16x3/1,1 R P2/2 32x3/1,1 R 32x3/1,1 R P2/2 64x3/1,1 R 64x3/1,1 R P2/2 64x3/1,1 R 64x3/1,1 R P2/2",
        "F512 R D.5 F512 R D.5 F10",
    ),
    "nin": Listed(
        1, 224, 10,
        "96x11/4,0 R 96x1/1,0 R 96x1/1,0 R P3/2 256x5/1,2 R 256x1/1,0 R 256x1/1,0 R P3/2 "
        "384x3/1,1 R 384x1/1,0 R 384x1/1,0 R P3/2 D.5 10x3/1,1 R 10x1/1,0 R 10x1/1,0 R A",
    ),
    # LeCun et al. 1998, section 2.B, with plain averages and complete connections.
    "lenet5": Listed(1, 32, 10, "6x5/1,0 T V2/2 16x5/1,0 T V2/2", "F120 T F84 T F10"),
    # cuda-convnet, layers-80sec.cfg and layers-18pct.cfg (scale .00005 is divided by the 9 cells of the window).
    "convnet_quick": Listed(
        3, 32, 10, "32x5/1,2 P3/2^ R 32x5/1,2 R V3/2^ 64x5/1,2 R V3/2^", "F64 R F10"
    ),
    "convnet_full": Listed(
        3, 32, 10, "32x5/1,2 P3/2^ R M3:5.5555555556e-6 32x5/1,2 R V3/2^ M3:5.5555555556e-6 64x5/1,2 R V3/2^", "F10"
    ),
    "convnet_figure1": Listed(3, 32, 10, "32x5/1,2 P3/2^ R 32x5/1,2 R V3/2^ 64x5/1,2 R V3/2^", "F10"),
    # BVLC/caffe, models/bvlc_reference_caffenet/train_val.prototxt: alpha .0001 is divided by the 5 neighbours, k is 1.
    "caffenet": Listed(
        3, 227, 1000,
        "96x11/4,0 R P3/2^ L5:2e-5:1 256x5/1,2g2 R P3/2^ L5:2e-5:1 384x3/1,1 R 384x3/1,1g2 R 256x3/1,1g2 R P3/2^",
        HIDDEN,
    ),
    # Zeiler, Fergus: arXiv 1311.2901, figure 3.
    "zfnet": Listed(
        3, 224, 1000,
        f"96x7/2,1 R P3/2^ {LRN} 256x5/2,0 R P3/2^ {LRN} 384x3/1,1 R 384x3/1,1 R 256x3/1,1 R P3/2^",
        HIDDEN,
    ),
    # Sermanet et al.: arXiv 1312.6229, table 1.
    "overfeat_fast": Listed(
        3, 231, 1000,
        "96x11/4,0 R P2/2 256x5/1,0 R P2/2 512x3/1,1 R 1024x3/1,1 R 1024x3/1,1 R P2/2",
        "F3072 R D.5 F4096 R D.5 F1000",
    ),
    # Chatfield et al.: arXiv 1405.3531, table 1; CNN-S as in the authors' released model.
    "cnn_f": Listed(
        3, 224, 1000,
        f"64x11/4,0 R {LRN} P3/2^ 256x5/1,2 R {LRN} P3/2^ 256x3/1,1 R 256x3/1,1 R 256x3/1,1 R P3/2^",
        HIDDEN,
    ),
    "cnn_m": Listed(
        3, 224, 1000,
        f"96x7/2,0 R {LRN} P3/2^ 256x5/2,1 R {LRN} P3/2^ 512x3/1,1 R 512x3/1,1 R 512x3/1,1 R P3/2^",
        HIDDEN,
    ),
    "cnn_s": Listed(
        3, 224, 1000,
        f"96x7/2,0 R {LRN} P3/3^ 256x5/1,0 R P2/2^ 512x3/1,1 R 512x3/1,1 R 512x3/1,1 R P3/3^",
        HIDDEN,
    ),
    # Zhang et al.: arXiv 1611.03530, appendix A; constants of the norms of TensorFlow's CIFAR-10 tutorial, alpha .001 / 9.
    "alexnet_cifar_small": Listed(
        3, 28, 10,
        "64x5/1,2 R P3/2^ L9:1.1111111111e-4:1 64x5/1,2 R P3/2^ L9:1.1111111111e-4:1",
        "F384 R F192 R F10",
    ),
    # bearpaw/pytorch-classification, models/cifar/alexnet.py.
    "alexnet_cifar": Listed(
        3, 32, 10, "64x11/4,5 R P2/2 192x5/1,2 R P2/2 384x3/1,1 R 256x3/1,1 R 256x3/1,1 R P2/2", "F10"
    ),
    # MatConvNet, examples/imagenet/cnn_imagenet_init.m with batchNormalization.
    "alexnet_bn": Listed(
        3, 227, 1000,
        "96x11/4,0 B1e-4 R P3/2 256x5/1,2g2 B1e-4 R P3/2 384x3/1,1 B1e-4 R 384x3/1,1g2 B1e-4 R 256x3/1,1g2 B1e-4 R P3/2",
        "F4096 B1e-4 R F4096 B1e-4 R F1000",
    ),
}  # fmt: skip

CONV = re.compile(r"(\d+)x(\d+)/(\d+),(\d+)(?:g(\d))?")
POOL = re.compile(r"([PV])(\d)/(\d)(?:,(\d))?(\^?)")
NORM = re.compile(r"L(\d+):([\d.e-]+):([\d.]+)(?:g(\d))?")


def counts(net: Listed) -> tuple[int, int]:
    """Return the number of parameters and of multiply-adds of a list by arithmetic."""
    parameters, multiply_adds, channels, size = 0, 0, net.channels, net.size
    for item in [*net.features.split(), *net.classifier.split()]:
        if match := CONV.fullmatch(item):
            count, kernel, stride, padding, groups = (int(value or 1) for value in match.groups())
            size = (size + 2 * padding - kernel) // stride + 1
            weights = count * channels // groups * kernel**2
            parameters, multiply_adds, channels = parameters + weights + count, multiply_adds + weights * size**2, count
        elif match := POOL.fullmatch(item):
            kernel, stride, padding = (int(value or 0) for value in match.groups()[1:4])
            last = size + 2 * padding - kernel
            size = (-(-last // stride) if match[5] else last // stride) + 1
        elif item[0] == "F":
            weights = channels * size**2 * int(item[1:])
            parameters, multiply_adds = parameters + weights + int(item[1:]), multiply_adds + weights
            channels, size = int(item[1:]), 1
        elif item[0] == "Z":
            size += int(item[1:])
        elif item[0] == "B":
            parameters += 2 * channels
        elif item == "A":
            size = 1
    return parameters, multiply_adds


class ChannelNorm(nn.Module):
    """The paper, section 3.3: b = a / (k + alpha x sum of the squares of n neighbouring channels) ^ .75, within groups."""

    def __init__(self, size: int, alpha: float, k: float, groups: int) -> None:
        super().__init__()
        self.size, self.alpha, self.k, self.groups = size, alpha, k, groups

    def forward(self, images: Tensor) -> Tensor:
        outputs = []
        for group in images.chunk(self.groups, 1):
            half = self.size // 2
            squares = nn.functional.pad(group.square(), (0, 0, 0, 0, half, half))
            sums = sum(squares[:, shift : shift + group.shape[1]] for shift in range(self.size))
            outputs.append(group / (self.k + self.alpha * sums) ** 0.75)
        return torch.cat(outputs, 1)


class CellNorm(nn.Module):
    """cuda-convnet's rnorm: b = a / (1 + alpha x sum of the squares of n x n cells of the same map) ^ .75."""

    def __init__(self, size: int, alpha: float) -> None:
        super().__init__()
        self.size, self.alpha = size, alpha

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        squares = nn.functional.pad(images.square(), [self.size // 2] * 4)
        shifts = [(row, column) for row in range(self.size) for column in range(self.size)]
        sums = sum(squares[:, :, row : row + height, column : column + width] for row, column in shifts)
        return images / (1 + self.alpha * sums) ** 0.75


def layers(text: str, size: int) -> Iterator[nn.Module]:
    """Yield the modules of a list whose input has `size` channels or features."""
    linear = False
    for item in text.split():
        if match := CONV.fullmatch(item):
            count, kernel, stride, padding, groups = (int(value or 1) for value in match.groups())
            yield nn.Conv2d(size, count, kernel, stride, padding, groups=groups)
            size = count
        elif match := POOL.fullmatch(item):
            pooling = nn.MaxPool2d if match[1] == "P" else nn.AvgPool2d
            yield pooling(int(match[2]), int(match[3]), int(match[4] or 0), ceil_mode=bool(match[5]))
        elif match := NORM.fullmatch(item):
            yield ChannelNorm(int(match[1]), float(match[2]), float(match[3]), int(match[4] or 1))
        elif item[0] == "M":
            window, alpha = item[1:].split(":")
            yield CellNorm(int(window), float(alpha))
        elif item[0] == "Z":
            yield nn.ZeroPad2d((0, int(item[1:]), 0, int(item[1:])))
        elif item[0] == "F":
            yield nn.Linear(size, int(item[1:]))
            size, linear = int(item[1:]), True
        elif item[0] == "D":
            yield nn.Dropout(float(item[1:]))
        elif item[0] == "B":
            yield (nn.BatchNorm1d if linear else nn.BatchNorm2d)(size, eps=float(item[1:]))
        elif item == "A":
            yield nn.AdaptiveAvgPool2d(1)
            yield nn.Flatten()
        else:
            yield {"R": nn.ReLU, "T": nn.Tanh}[item]()


def reference(net: Listed) -> nn.Module:
    """Return the net of a list as plain modules."""
    body = nn.Sequential(*layers(net.features, net.channels))
    with torch.no_grad():
        flat = body.eval()(torch.zeros(1, net.channels, net.size, net.size)).flatten(1).shape[1]
    return nn.Sequential(body, *([nn.Flatten(), *layers(net.classifier, flat)] if net.classifier else []))
