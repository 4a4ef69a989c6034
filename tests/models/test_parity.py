"""Parity of each net with a reference that is built layer by layer from a list in its source."""

import pytest
import torch
from torch import Tensor, nn

from alexlab.config import build
from support.layer_lists import LISTS, layers, reference
from support.runs import plain


def copy_weights(net: nn.Module, reference: nn.Module) -> None:
    ours, theirs = net.state_dict(), reference.state_dict()
    assert [tuple(value.shape) for value in ours.values()] == [tuple(value.shape) for value in theirs.values()]
    reference.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))


@pytest.mark.parametrize("name", LISTS)
def test_the_net_matches_the_list_of_its_source(name: str) -> None:
    """Equal weights give equal logits, in eval mode and in train mode with dropout and batch norm.

    Pixels of up to 255 make the norms change the activations, so that their constants and their places matter."""
    listed = LISTS[name]
    torch.manual_seed(0)
    expected = reference(listed)
    net = build.net(plain(f"model={name}", f"model.in_channels={listed.channels}"), listed.outputs)
    copy_weights(net, expected)
    images = (torch.rand(2, listed.channels, listed.size, listed.size) - 0.5) * 255
    with torch.no_grad():
        for training in (False, True):
            outputs = []
            for one in (net.train(training), expected.train(training)):
                torch.manual_seed(1)
                outputs.append(one(images))
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=3e-6 * max(1.0, float(outputs[1].abs().max())))


def test_no_dropout_turns_off_that_of_any_net() -> None:
    """As debug=overfit sets it, also for nets without such an argument."""
    for name in ("vgg11", "resnet18"):
        net = build.net(plain("model=torchvision", f"model.name={name}", "+model.dropout=0.0"), 2)
        assert all(layer.p == 0 for layer in net.modules() if isinstance(layer, nn.Dropout))


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
