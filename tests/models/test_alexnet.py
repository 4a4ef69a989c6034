import re

import pytest
import torch
from torch import nn
from torchvision.models import alexnet as torchvision_alexnet

from alexlab.config import build
from alexlab.models.alexnet import AlexNet
from support.runs import plain


def on_meta(*overrides: str, num_classes: int = 1000) -> nn.Module:
    with torch.device("meta"):
        return build.net(plain(*overrides), num_classes)


def test_dropout_masks_match_torchvision() -> None:
    theirs, ours = torchvision_alexnet(num_classes=10), AlexNet(10)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 224, 224)
    torch.manual_seed(3)
    expected = theirs(images)
    torch.manual_seed(3)
    assert torch.equal(ours(images), expected)


@pytest.mark.parametrize(("alpha", "factor"), [("5e-4", 1e-4), ("1e-4", 1e-4 / 5)])
def test_lrn_matches_the_formula_of_the_paper_or_of_its_code(alpha: str, factor: float) -> None:
    """b = a / (k + alpha * sum over n neighbouring channels of a^2) ^ beta, section 3.3, in float64; neighbours
    are channels of the same tower. The code of the authors divides alpha by n, the text does not."""
    net = on_meta("model=alexnet_two_tower", f"model.lrn_alpha={alpha}", num_classes=2)
    layer = net.features.norm1
    a = torch.rand(2, 12, 3, 3, dtype=torch.float64) * 50
    expected = torch.empty_like(a)
    for channel in range(12):
        start = channel // 6 * 6
        neighbours = a[:, max(start, channel - 2) : min(start + 6, channel + 3)]
        expected[:, channel] = a[:, channel] / (2 + factor * neighbours.square().sum(1)) ** 0.75
    torch.testing.assert_close(layer(a), expected, rtol=1e-12, atol=0)
    assert list(net.features)[2:4] == [net.features.norm1, net.features.pool1]


def feature_names(*overrides: str) -> list[str]:
    """Return the names of the feature layers."""
    return [name for name, _ in on_meta(*overrides, num_classes=2).features.named_children()]


def test_lrn_follows_the_activation_and_batch_norm_may_precede_it() -> None:
    assert feature_names("model.norm=lrn")[:8] == ["conv1", "act1", "norm1", "pool1", "conv2", "act2", "norm2", "pool2"]
    assert feature_names("model.norm=batch")[:5] == ["conv1", "norm1", "act1", "pool1", "conv2"]
    assert feature_names("model.norm=batch", "model.norm_side=after")[:5] == [
        "conv1",
        "act1",
        "norm1",
        "pool1",
        "conv2",
    ]
    assert [name for name in feature_names("model.norm=batch", "model.norm_layers=[2,5]") if "norm" in name] == [
        "norm2",
        "norm5",
    ]
    net = on_meta("model.norm=batch", "model.norm_eps=1e-3", "model.norm_momentum=0.01", num_classes=2)
    assert (net.features.norm3.eps, net.features.norm3.momentum) == (1e-3, 0.01)


def test_each_convolution_can_have_its_own_place_of_the_norm() -> None:
    assert feature_names("model=alexnet_authors")[:9] == [
        *("conv1", "norm1", "act1", "pool1"),
        *("conv2", "act2", "norm2", "spatial2", "pool2"),
    ]
    assert feature_names("model=caffenet")[:8] == ["conv1", "act1", "pool1", "norm1", "conv2", "act2", "pool2", "norm2"]
    assert feature_names("model=convnet_full")[:4] == ["conv1", "act1", "pool1", "spatial1"]


def test_batch_norm_of_hidden_linear_layers_has_the_place_of_that_of_the_last_convolution() -> None:
    linear = "model.norm_layers=[5,6,7]"
    net = on_meta("model.norm=batch", linear, "model.norm_eps=1e-3")
    assert list(net.classifier._modules)[:4] == ["drop6", "fc6", "norm6", "act6"]
    assert (type(net.classifier.norm7), net.classifier.norm7.eps) == (nn.BatchNorm1d, 1e-3)
    net = on_meta("model.norm=batch", linear, "model.norm_side=after_pool", "model.dropout_side=output")
    assert list(net.classifier._modules)[:4] == ["fc6", "act6", "norm6", "drop6"]
    assert list(net.features._modules)[-3:] == ["act5", "pool5", "norm5"]


def test_any_torch_activation_can_be_used() -> None:
    net = on_meta("model.activation=tanh", num_classes=2)
    assert isinstance(net.features.act1, nn.Tanh)
    assert isinstance(net.classifier.act6, nn.Tanh)
    assert isinstance(on_meta("model.activation=leakyrelu", num_classes=2).features.act5, nn.LeakyReLU)


def test_poolings_may_not_overlap() -> None:
    net = on_meta("model.pool_kernels=[2,2,2]", num_classes=2)
    assert [(layer.kernel_size, layer.stride) for layer in net.features if isinstance(layer, nn.MaxPool2d)] == [
        (2, 2)
    ] * 3


@pytest.mark.parametrize("number", range(1, 6))
def test_any_convolution_can_be_skipped(number: int) -> None:
    names = feature_names(f"model.skip_convs=[{number}]", "model.norm=batch")
    assert [name for name in names if name.endswith(str(number))] == ([f"pool{number}"] if number in (1, 2, 5) else [])
    net = on_meta(f"model.skip_convs=[{number}]", num_classes=2)
    assert net(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 2)


def test_a_linear_tail_has_no_activation_or_dropout() -> None:
    net = on_meta("model=alexnet_catdog", num_classes=2)
    assert list(net.classifier._modules) == ["fc6", "act6", "drop6", "fc7", "act7", "drop7", "fc8", "fc9"]


def test_two_towers_group_conv2_conv4_and_conv5() -> None:
    net = on_meta("model=alexnet_two_tower")
    assert [layer.groups for layer in net.features if isinstance(layer, nn.Conv2d)] == [1, 2, 1, 2, 2]
    assert [type(layer) for layer in net.classifier][:3] == [nn.Linear, nn.ReLU, nn.Dropout]


def test_width_scales_the_widths_of_a_variant() -> None:
    net = on_meta("model=alexnet_half", "model.width=0.5")
    assert [layer.out_channels for layer in net.features if isinstance(layer, nn.Conv2d)] == [24, 64, 96, 96, 64]
    assert net.classifier.fc6.out_features == 1024
    grouped = on_meta("model=alexnet_two_tower", "model.width=0.01")
    assert all(layer.out_channels % layer.groups == 0 for layer in grouped.features if isinstance(layer, nn.Conv2d))


def test_widths_norm_channels_and_classes_can_be_configured() -> None:
    net = on_meta(
        "model.widths=[2,4,6,8,10]", "model.fc_widths=[7]", "model.norm=batch", "model.in_channels=1", num_classes=3
    )
    assert [layer.num_features for layer in net.features if isinstance(layer, nn.BatchNorm2d)] == [2, 4, 6, 8, 10]
    assert net.features.conv1.in_channels == 1
    assert [layer.out_features for layer in net.classifier if isinstance(layer, nn.Linear)] == [7, 3]


def test_the_error_for_a_small_image_names_the_smallest_size() -> None:
    net = AlexNet(2, widths=[2] * 5, fc_widths=[2])
    net.check_image_size(63)
    assert net(torch.zeros(1, 3, 63, 63)).shape == (1, 2)
    with pytest.raises(
        ValueError, match=r"data\.image_size=62 is too small .* pool5 maps 2 x 2 .* smallest size is 63"
    ):
        net.check_image_size(62)
    with pytest.raises(ValueError, match=r"conv1 maps 5 x 5 to floor\(\(5 \+ 2 x 2 - 11\) / 4\) \+ 1 = 0"):
        net.check_image_size(5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"widths": [1, 2, 3]},
            "model.widths, model.kernels, model.strides, model.paddings and model.groups must have one entry per "
            "convolution; got 3, 5, 5, 5 and 5 entries",
        ),
        ({"norm_side": ["after"]}, "must have one entry per convolution; got 5, 5, 5, 5, 5 and 1 entries"),
        ({"width": 0}, "model.width must be positive; got 0"),
        ({"pool_size": 0}, "model.pool_size must be at least 1; got 0"),
        ({"norm_layers": [1, 3]}, "model.norm must be lrn or batch with model.norm_layers=[1, 3]; got none"),
        ({"lrn_k": 0.0}, "model.lrn_k must be positive; got 0.0"),
        ({"kernels": [11, 5, 3, 3, 0]}, "model.kernels must be at least 1; got 0"),
        ({"paddings": [-1, 0, 0, 0, 0]}, "model.paddings must be at least 0; got -1"),
        ({"fc_widths": [0]}, "model.fc_widths must be at least 1; got 0"),
        ({"norm": "layer"}, "model.norm must be one of none, lrn, batch; got 'layer'"),
        ({"dropout_side": "both"}, "model.dropout_side must be one of input, output; got 'both'"),
        ({"in_channels": 3, "groups": [2, 1, 1, 1, 1]}, "conv1 maps 3 to 64 channels in 2 groups"),
        (
            {"pool_kernels": [3]},
            "model.pool_layers, model.pool_kinds, model.pool_kernels and model.pool_strides must have one entry per pooling; "
            "got 3, 3, 1 and 3 entries",
        ),
        ({"pool_kinds": ["max", "max", "median"]}, "model.pool_kinds must be one of max, avg; got 'median'"),
        (
            {"pool_layers": [1, 1, 2]},
            "model.pool_layers must contain distinct numbers of layers, 1 to 5; got [1, 1, 2]",
        ),
        ({"activation": "step"}, "model.activation must be one of threshold, relu, "),
        ({"norm_side": "above"}, "model.norm_side must be one of before, after, after_pool; got 'above'"),
        ({"skip_convs": [6]}, "model.skip_convs must contain distinct numbers of layers, 1 to 5; got [6]"),
        ({"norm_layers": [0]}, "model.norm_layers must contain distinct numbers of layers, 1 to 5; got [0]"),
        (
            {"norm_layers": [6], "norm": "lrn"},
            "model.norm_layers must contain distinct numbers of layers, 1 to 5; got [6]",
        ),
        (
            {"norm_layers": [8], "norm": "batch"},
            "model.norm_layers must contain distinct numbers of layers, 1 to 7; got [8]",
        ),
        ({"spatial_layers": [1], "spatial_size": 4}, "model.spatial_size must be odd; got 4"),
        ({"linear_tail": 3}, "model.linear_tail must be in 0..2, the hidden layers; got 3"),
    ],
)
def test_invalid_arguments_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AlexNet(2, **options)
