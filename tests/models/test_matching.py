"""Matching of weights to nets of other sizes, names, colours and classes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from alexlab.errors import ConfigError
from alexlab.models.alexnet import AlexNet
from alexlab.models.googlenet import GoogLeNet
from alexlab.models.nin import NiN
from alexlab.models.torchvision import torchvision_net
from alexlab.models.vgg import VGG
from alexlab.models.weights.matching import match_weights
from alexlab.models.weights.pretrained import WeightSource

TOWERS: dict[str, Any] = {"groups": [1, 2, 1, 2, 2], "norm": "lrn", "dropout_side": "output"}
ALEXNET_HEAD = ("classifier.fc8.weight", "classifier.fc8.bias")


def names(count: int) -> list[str]:
    return [f"class{number}" for number in range(count)]


def match(net: nn.Module, other: nn.Module, *, head: Any = (), classes: int = 5) -> Any:
    found = match_weights(net, WeightSource("source", other.state_dict()), head=head, classes=names(classes))
    found.load_into(net)
    return found


def small(**options: Any) -> AlexNet:
    return AlexNet(5, **{"widths": [8, 16, 24, 16, 16], "fc_widths": [32, 32], **options})


@pytest.mark.parametrize("size", [224, 96])
def test_torchvision_weights_give_the_logits_of_its_alexnet(size: int) -> None:
    source_net = models.alexnet(num_classes=5).eval()
    net = AlexNet(5).eval()
    found = match(net, source_net)
    images = torch.randn(2, 3, size, size)
    torch.testing.assert_close(net(images), source_net(images))
    assert len(found.matched) == 16
    assert not (found.unmatched or found.unused or found.sliced)
    assert list(found.lines()) == ["16 tensors from source"]


def test_torchvision_weights_fit_vgg11() -> None:
    with torch.device("meta"):
        source_net, net = models.vgg11(num_classes=5), VGG(5)
    assert net.torchvision_name == "vgg11"
    found = match_weights(net, WeightSource("source", source_net.state_dict()), head=(), classes=names(5))
    assert len(found.matched) == len(net.state_dict())
    assert not (found.unmatched or found.unused or found.sliced)


def test_another_number_of_classes_reinitializes_the_head() -> None:
    source_net, net = small(), small()
    net.classifier.fc8 = nn.Linear(32, 3)
    before = net.classifier.fc8.weight.clone()
    found = match(net, source_net, head=ALEXNET_HEAD, classes=3)
    assert set(found.unmatched) == set(ALEXNET_HEAD)
    assert torch.equal(net.classifier.fc8.weight, before)
    assert torch.equal(net.classifier.fc7.weight, source_net.classifier.fc7.weight)
    assert list(found.lines()) == [
        "14 tensors from source",
        "randomly initialized, the head has 3 outputs instead of 5: classifier.fc8.weight, classifier.fc8.bias",
        "not used: classifier.fc8.weight, classifier.fc8.bias",
    ]


def test_other_class_names_reinitialize_the_head() -> None:
    source_net, net = small(), small()
    source = WeightSource("source", source_net.state_dict(), classes=["a", "b", "c", "d", "e"])
    assert match_weights(net, source, head=ALEXNET_HEAD, classes=names(5)).unmatched == dict.fromkeys(
        ALEXNET_HEAD, "the head has other classes"
    )
    assert not match_weights(net, source, head=ALEXNET_HEAD, classes=source.classes or []).unmatched


def test_a_narrower_net_uses_the_first_channels_of_a_wider_one() -> None:
    """With the unused channels set to zero, the wide net computes the same logits as the narrow one."""
    wide, narrow = small(norm="batch").eval(), small(norm="batch", width=0.5).eval()
    for module in wide.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    found = match(narrow, wide, head=())
    assert "features.conv1 (8 x 3 x 11 x 11 -> 4 x 3 x 11 x 11)" in found.sliced
    assert not (found.unmatched or found.unused)
    with torch.no_grad():
        for (_, ours), (name, theirs) in zip(narrow.named_modules(), wide.named_modules(), strict=True):
            if isinstance(theirs, nn.Conv2d | nn.BatchNorm2d) or (isinstance(theirs, nn.Linear) and "fc8" not in name):
                theirs.weight[len(ours.weight) :] = 0
                theirs.bias[len(ours.weight) :] = 0
                if isinstance(theirs, nn.BatchNorm2d):
                    theirs.running_mean[len(ours.weight) :] = 0
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(narrow(images), wide(images))


def test_a_narrower_two_tower_net_uses_the_first_channels_of_each_tower() -> None:
    wide, narrow = small(**TOWERS, norm_layers=[]).eval(), small(**TOWERS, norm_layers=[], width=0.5).eval()
    found = match(narrow, wide)
    assert not (found.unmatched or found.unused)
    conv1, conv2 = wide.features.conv1.weight, wide.features.conv2.weight
    assert torch.equal(narrow.features.conv1.weight, conv1[[0, 1, 4, 5]])
    assert torch.equal(narrow.features.conv2.weight, conv2[[0, 1, 2, 3, 8, 9, 10, 11]][:, :2])
    with torch.no_grad():
        kept = {"conv1": 8, "conv2": 16, "conv3": 24, "conv4": 16, "conv5": 16}
        for name, count in kept.items():
            layer = wide.features.get_submodule(name)
            unused = [c for c in range(count) if c % (count // 2) >= count // 4]
            layer.weight[unused] = 0
            layer.bias[unused] = 0
        for name in ("fc6", "fc7"):
            layer = wide.classifier.get_submodule(name)
            layer.weight[16:] = 0
            layer.bias[16:] = 0
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(narrow(images), wide(images))


def test_two_towers_use_their_connections_of_an_ungrouped_net() -> None:
    one, two = small(), small(groups=[1, 2, 1, 2, 2])
    match(two, one)
    dense, grouped = one.features.conv2.weight, two.features.conv2.weight
    assert torch.equal(grouped[:8], dense[:8, :4])
    assert torch.equal(grouped[8:], dense[8:, 4:])


def test_an_ungrouped_net_cannot_use_grouped_kernels() -> None:
    found = match(small(), small(groups=[1, 2, 1, 2, 2]))
    assert found.unmatched["features.conv2.weight"] == "another size in the file"
    assert found.unmatched["features.conv2.bias"] == "another size in the file"
    assert "features.conv2.weight" in found.unused
    assert "features.conv1.weight" in found.matched


def test_a_wider_net_uses_layers_of_equal_size() -> None:
    found = match(small(), small(fc_widths=[16, 16]))
    assert set(found.unmatched) == {
        f"classifier.{name}" for name in ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias", "fc8.weight")
    } | {"classifier.fc8.bias"}
    assert not found.sliced


def test_layers_after_a_skipped_convolution_are_not_sliced() -> None:
    found = match(small(skip_convs=[3], width=0.5), small())
    assert set(found.unmatched) == {"features.conv4.weight", "features.conv4.bias"} | {
        key for key in found.unmatched if key.startswith(("features.conv5", "classifier"))
    }
    assert {"features.conv1.weight", "features.conv2.weight"} <= set(found.matched)
    assert "features.conv3.weight" in found.unused
    with torch.device("meta"):
        assert match_weights(
            small(skip_convs=[3]), WeightSource("source", small().state_dict()), head=(), classes=names(5)
        ).unmatched


def test_grey_and_colour_nets_agree_on_grey_images() -> None:
    colour, grey = small().eval(), small(in_channels=1).eval()
    match(grey, colour)
    images = torch.randn(2, 1, 96, 96)
    torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    back = small().eval()
    match(back, grey)
    torch.testing.assert_close(back(images.expand(-1, 3, -1, -1)), grey(images), rtol=1e-4, atol=1e-5)


def test_another_pool_size_is_not_sliced() -> None:
    found = match(small(pool_size=5), small())
    assert "classifier.fc6.weight" in found.unmatched
    assert "features.conv5.weight" in found.matched


@pytest.mark.parametrize(
    "make",
    [lambda: NiN(5, width=0.1), lambda: GoogLeNet(5, width=0.1), lambda: torchvision_net(5, name="mobilenet_v3_small")],
)
def test_every_net_fits_its_own_weights(make: Callable[[], nn.Module]) -> None:
    source_net, net = make(), make()
    found = match(net, source_net)
    assert not (found.unmatched or found.unused)
    for key, value in net.state_dict().items():
        assert torch.equal(value, source_net.state_dict()[key])


def test_a_narrower_nin_uses_a_wider_one() -> None:
    found = match(NiN(5, width=0.1), NiN(5, width=0.2))
    assert not (found.unmatched or found.unused)


def test_weights_that_fit_nowhere_are_an_error() -> None:
    expected = r"does not fit the net in any layer: the net begins with features.conv1.weight \(8 x 3 x 11 x 11\), the file with conv1.weight \(64 x 3 x 7 x 7\)"
    with pytest.raises(ConfigError, match=expected):
        match_weights(small(), WeightSource("source", models.resnet18().state_dict()), head=(), classes=names(5))
