import re

import pytest
import torch
from torch import nn
from torchvision.models import alexnet as torchvision_alexnet

from alexlab.models.alexnet import AlexNet
from conftest import plain

# The counts of the papers and of torchvision for 1000 classes, worked out from the lists of layers.
PARAMETERS = {
    "alexnet": 61_100_840,
    "alexnet_two_tower": 60_965_224,
    "alexnet_half": 16_630_440,
    "alexnet_quarter": 4_675_912,
}


def on_meta(*overrides: str, num_classes: int = 1000) -> nn.Module:
    from alexlab import build

    with torch.device("meta"):
        return build.net(plain(*overrides), num_classes)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_those_of_the_sources(name: str) -> None:
    net = on_meta(f"model={name}")
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_features_end_in_a_grid_of_6_by_6(name: str) -> None:
    net = on_meta(f"model={name}")
    images = torch.empty(2, 3, 224, 224, device="meta")
    assert net.features(images).shape[2:] == (6, 6)
    assert net(images).shape == (2, 1000)


def test_docstring_table_is_what_the_net_does() -> None:
    rows = re.findall(r"\| (\w+\d) +\| (\S+) +\| (\S+(?:, \S+)?) +\| ([\dx ]+?) +\| (\d+) +\|", AlexNet.__doc__ or "")
    assert len(rows) == 11
    with torch.device("meta"):
        net = AlexNet(1000)
    layers = {name.split(".")[-1]: layer for name, layer in net.named_modules()}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, *_ in rows:
        layers[name].register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    net(torch.empty(1, 3, 224, 224, device="meta"))
    for name, kernel, stride_padding, output, parameters in rows:
        layer = layers[name]
        assert shapes[name] == tuple(map(int, output.split(" x "))), name
        assert sum(parameter.numel() for parameter in layer.parameters()) == int(parameters), name
        if kernel != "-":
            values = [v[0] if isinstance(v, tuple) else v for v in (layer.kernel_size, layer.stride, layer.padding)]
            assert values == [int(kernel), *map(int, stride_padding.split(", "))], name


def test_equal_weights_give_torchvision_s_logits_bit_for_bit() -> None:
    torch.manual_seed(0)
    theirs = torchvision_alexnet(num_classes=10).eval()
    ours = AlexNet(10).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(ours(images), theirs(images))


def test_dropout_is_drawn_as_in_torchvision() -> None:
    theirs, ours = torchvision_alexnet(num_classes=10), AlexNet(10)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 224, 224)
    torch.manual_seed(3)
    expected = theirs(images)
    torch.manual_seed(3)
    assert torch.equal(ours(images), expected)


def test_lrn_is_the_paper_s_formula() -> None:
    """b = a / (k + alpha * sum over n neighbouring channels of a^2) ^ beta, section 3.3, summed directly in float64."""
    net = on_meta("model=alexnet_two_tower", num_classes=2)
    layer = net.features.norm1
    a = torch.rand(2, 12, 3, 3, dtype=torch.float64) * 50
    expected = torch.empty_like(a)
    for channel in range(12):
        neighbours = a[:, max(0, channel - 2) : min(12, channel + 3)]
        expected[:, channel] = a[:, channel] / (2 + 1e-4 * neighbours.square().sum(1)) ** 0.75
    torch.testing.assert_close(layer(a), expected, rtol=1e-12, atol=0)
    assert list(net.features)[2:4] == [net.features.norm1, net.features.pool1]


def test_two_towers_are_groups_in_conv2_conv4_and_conv5() -> None:
    net = on_meta("model=alexnet_two_tower")
    assert [layer.groups for layer in net.features if isinstance(layer, nn.Conv2d)] == [1, 2, 1, 2, 2]
    assert [type(layer) for layer in net.classifier][:3] == [nn.Linear, nn.ReLU, nn.Dropout]


def test_width_multiplies_the_net_s_own_widths() -> None:
    net = on_meta("model=alexnet_half", "model.width=0.5")
    assert [layer.out_channels for layer in net.features if isinstance(layer, nn.Conv2d)] == [24, 64, 96, 96, 64]
    assert net.classifier.fc6.out_features == 1024
    grouped = on_meta("model=alexnet_two_tower", "model.width=0.01")
    assert all(layer.out_channels % layer.groups == 0 for layer in grouped.features if isinstance(layer, nn.Conv2d))


def test_widths_norm_channels_and_classes_are_options() -> None:
    net = on_meta(
        "model.widths=[2,4,6,8,10]", "model.fc_widths=[7]", "model.norm=batch", "model.in_channels=1", num_classes=3
    )
    assert [layer.num_features for layer in net.features if isinstance(layer, nn.BatchNorm2d)] == [2, 4, 6, 8, 10]
    assert net.features.conv1.in_channels == 1
    assert [layer.out_features for layer in net.classifier if isinstance(layer, nn.Linear)] == [7, 3]


def test_the_smallest_image_is_named() -> None:
    net = AlexNet(2, widths=[2] * 5, fc_widths=[2])
    net.check_image_size(63)
    assert net(torch.zeros(1, 3, 63, 63)).shape == (1, 2)
    with pytest.raises(
        ValueError, match=r"data\.image_size=62 is too small .* pool5 gets 2 x 2 .* smallest size is 63"
    ):
        net.check_image_size(62)
    with pytest.raises(ValueError, match=r"conv1 gets 5 x 5 and gives floor\(\(5 \+ 2 x 2 - 11\) / 4\) \+ 1 = 0"):
        net.check_image_size(5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": [1, 2, 3]}, "model.widths needs 5 numbers, one for each convolution; got [1, 2, 3]"),
        ({"groups": [1]}, "model.groups needs 5 numbers"),
        ({"width": 0}, "every width must be positive"),
        ({"norm": "layer"}, "model.norm must be one of none, lrn, batch; got 'layer'"),
        ({"dropout_side": "both"}, "model.dropout_side must be input or output; got 'both'"),
        ({"in_channels": 3, "groups": [2, 1, 1, 1, 1]}, "conv1 cannot be divided: 3 -> 64 channels in model.groups=2"),
    ],
)
def test_numbers_that_make_no_net_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        AlexNet(2, **options)
