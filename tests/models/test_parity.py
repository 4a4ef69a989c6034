"""Parity of each net with a reference that is built layer by layer from a list in its source.

Notation: `64x11/4,2` is a convolution of 64 kernels of 11 x 11 with stride 4 and
padding 2 (`g2`: in two groups), `R` ReLU, `P3/2` max pooling, `L` the paper's local response normalization, `B` batch
normalization, `A` average pooling to one value, `D.5` dropout, `F10` a linear layer.
"""

import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from alexlab.config import build
from support.runs import plain

LIST = {
    "alexnet": (
        3, 1000,
        "64x11/4,2 R P3/2 192x5/1,2 R P3/2 384x3/1,1 R 256x3/1,1 R 256x3/1,1 R P3/2",
        "D.5 F4096 R D.5 F4096 R F1000",
    ),
    "alexnet_two_tower": (
        3, 1000,
        "96x11/4,2 R L P3/2 256x5/1,2g2 R L P3/2 384x3/1,1 R 384x3/1,1g2 R 256x3/1,1g2 R P3/2",
        "F4096 R D.5 F4096 R D.5 F1000",
    ),
    "alexnet_half": (
        3, 1000,
        "48x11/4,2 R P3/2 128x5/1,2 R P3/2 192x3/1,1 R 192x3/1,1 R 128x3/1,1 R P3/2",
        "D.5 F2048 R D.5 F2048 R F1000",
    ),
    "alexnet_quarter": (
        3, 1000,
        "24x11/4,2 R P3/2 64x5/1,2 R P3/2 96x3/1,1 R 96x3/1,1 R 64x3/1,1 R P3/2",
        "D.5 F1024 R D.5 F1024 R F1000",
    ),
    "alexnet_catdog": (
        3, 2,
        "48x11/4,2 R P2/2 128x5/1,2 R P2/2 192x3/1,1 R 192x3/1,1 R 128x3/1,1 R P3/2",
        "F2048 R D.5 F2048 R D.5 F1000 F2",
    ),
    "alexnet_narrow": (
        3, 1000,
        "96x11/4,2 R P3/2 256x5/1,2 R P3/2 384x3/1,1 R 384x3/1,1 R 256x3/1,1 R P3/2",
        "D.5 F2048 R D.5 F2048 R F1000",
    ),
    "alexnet_d2l": (
        1, 10,
        "96x11/4,0 R P3/2 256x5/1,2 R P3/2 384x3/1,1 R 384x3/1,1 R 256x3/1,1 R P3/2",
        "F4096 R D.5 F10",
    ),
    "alexnet_catdog_tf": (
        3, 1,
        "48x11/4,0 R B P3/2 128x5/1,2 R B P3/2 192x3/1,1 R 192x3/1,1 R 128x3/1,1 R P3/2",
        "F1024 R D.25 F1024 R D.25 F1",
    ),
    "alexnet_catdog_tf_bn": (
        3, 1,
        "48x11/4,0 R B P3/2 128x5/1,2 R B P3/2 192x3/1,1 R B 192x3/1,1 R B 128x3/1,1 R B P3/2",
        "F1024 R D.25 F1024 R D.25 F1",
    ),
    "vgg11": (
        1, 10,
        "64x3/1,1 R P2/2 128x3/1,1 R P2/2 256x3/1,1 R 256x3/1,1 R P2/2 512x3/1,1 R 512x3/1,1 R P2/2 "
        "512x3/1,1 R 512x3/1,1 R P2/2",
        "F4096 R D.5 F4096 R D.5 F10",
    ),
    "vgg11_eighth": (
        1, 10,
        "8x3/1,1 R P2/2 16x3/1,1 R P2/2 32x3/1,1 R 32x3/1,1 R P2/2 64x3/1,1 R 64x3/1,1 R P2/2 64x3/1,1 R 64x3/1,1 R P2/2",
        "F512 R D.5 F512 R D.5 F10",
    ),
    "nin": (
        1, 10,
        "96x11/4,0 R 96x1/1,0 R 96x1/1,0 R P3/2 256x5/1,2 R 256x1/1,0 R 256x1/1,0 R P3/2 "
        "384x3/1,1 R 384x1/1,0 R 384x1/1,0 R P3/2 D.5 10x3/1,1 R 10x1/1,0 R 10x1/1,0 R A",
        "",
    ),
}  # fmt: skip


class PaperNorm(nn.Module):
    """The paper, section 3.3: b = a / (k + alpha x sum of the squares of n neighbouring channels) ^ beta."""

    def forward(self, images: Tensor) -> Tensor:
        squares = nn.functional.pad(images.square(), (0, 0, 0, 0, 2, 2))
        sums = sum(squares[:, shift : shift + images.shape[1]] for shift in range(5))
        return images / (2 + 1e-4 * sums) ** 0.75


def layers(text: str, size: int) -> Iterator[nn.Module]:
    """Yield the modules of a list whose input has `size` channels or features."""
    for item in text.split():
        if match := re.fullmatch(r"(\d+)x(\d+)/(\d+),(\d+)(?:g(\d))?", item):
            count, kernel, stride, padding, groups = (int(value or 1) for value in match.groups())
            yield nn.Conv2d(size, count, kernel, stride, padding, groups=groups)
            size = count
        elif match := re.fullmatch(r"P(\d)/(\d)(?:,(\d))?", item):
            yield nn.MaxPool2d(int(match[1]), int(match[2]), int(match[3] or 0))
        elif match := re.fullmatch(r"F(\d+)", item):
            yield nn.Linear(size, int(match[1]))
            size = int(match[1])
        elif match := re.fullmatch(r"D(\.\d+)", item):
            yield nn.Dropout(float(match[1]))
        elif item == "A":
            yield nn.AdaptiveAvgPool2d(1)
            yield nn.Flatten()
        elif item == "B":
            yield nn.BatchNorm2d(size, eps=1e-3, momentum=0.01)
        else:
            yield {"R": nn.ReLU, "L": PaperNorm}[item]()


def from_list(channels: int, features: str, classifier: str) -> nn.Module:
    body = nn.Sequential(*layers(features, channels))
    with torch.no_grad():
        flat = body.eval()(torch.zeros(1, channels, 224, 224)).flatten(1).shape[1]
    return nn.Sequential(body, *([nn.Flatten(), *layers(classifier, flat)] if classifier else []))


def copy_weights(net: nn.Module, reference: nn.Module) -> None:
    ours, theirs = net.state_dict(), reference.state_dict()
    assert [tuple(value.shape) for value in ours.values()] == [tuple(value.shape) for value in theirs.values()]
    reference.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))


@pytest.mark.parametrize("name", LIST)
def test_the_net_matches_the_list_of_its_source(name: str) -> None:
    """Equal weights give equal logits, in eval mode and in train mode with dropout and batch norm."""
    channels, classes, features, classifier = LIST[name]
    torch.manual_seed(0)
    reference = from_list(channels, features, classifier)
    net = build.net(plain(f"model={name}", f"model.in_channels={channels}"), classes)
    copy_weights(net, reference)
    images = torch.randn(2, channels, 224, 224)
    with torch.no_grad():
        for training in (False, True):
            outputs = []
            for one in (net.train(training), reference.train(training)):
                torch.manual_seed(1)
                outputs.append(one(images))
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-6)


# Output channels: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection (arXiv 1409.4842, table 1).
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


class Inception(nn.Module):
    def __init__(self, size: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pool = widths
        self.branches = nn.ModuleList(
            nn.Sequential(*layers(text, size))
            for text in (
                f"{one}x1/1,0 R",
                f"{three_in}x1/1,0 R {three}x3/1,1 R",
                f"{five_in}x1/1,0 R {five}x5/1,2 R",
                f"P3/1,1 {pool}x1/1,0 R",
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([branch(images) for branch in self.branches], 1)


@pytest.mark.parametrize("stem_relu", [True, False])
def test_googlenet_matches_the_table_of_its_paper(stem_relu: bool) -> None:
    relu = " R" if stem_relu else ""
    stem = f"64x7/2,3 R P3/2,1 64x1/1,0{relu} 192x3/1,1{relu} P3/2,1"
    modules, size = [*layers(stem, 1)], 192
    for name, widths in INCEPTIONS.items():
        modules.append(Inception(size, widths))
        size = widths[0] + widths[2] + widths[4] + widths[5]
        if name in ("3b", "4e"):
            modules.append(nn.MaxPool2d(3, 2, 1))
    torch.manual_seed(0)
    reference = nn.Sequential(*modules, *layers("A F10", size))
    net = build.net(plain("model=googlenet", "model.in_channels=1", f"model.stem_relu={str(stem_relu).lower()}"), 10)
    copy_weights(net, reference)
    images = torch.randn(2, 1, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), reference.eval()(images), rtol=1e-4, atol=1e-6)
