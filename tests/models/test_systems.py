"""Tests of every net of `conf/model`: parameter counts, shapes, docstring tables and training."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from alexlab.config import CONFIG_DIR, build
from alexlab.models.alexnet import AlexNet
from alexlab.models.googlenet import GoogLeNet
from alexlab.models.nin import NiN
from alexlab.models.summary import layer_rows
from alexlab.models.vgg import VGG
from support.layer_lists import LISTS, counts
from support.runs import TINY, plain

# model -> channels, image size, outputs (1 for a single logit), trainable parameters.
COUNTS = {
    "alexnet": (3, 224, 1000, 61_100_840),
    "alexnet_two_tower": (3, 224, 1000, 60_965_224),
    "alexnet_authors": (3, 224, 1000, 60_965_224),
    "alexnet_six_convs": (3, 224, 1000, 61_555_304),
    "alexnet_bn": (3, 227, 1000, 60_984_360),
    "alexnet_half": (3, 224, 1000, 16_630_440),
    "alexnet_quarter": (3, 224, 1000, 4_675_912),
    "alexnet_catdog": (3, 224, 2, 16_632_442),
    "alexnet_narrow": (3, 224, 1000, 28_868_968),
    "alexnet_d2l": (1, 224, 10, 29_983_434),
    "alexnet_catdog_tf": (3, 224, 1, 5_274_657),
    "alexnet_catdog_tf_bn": (3, 224, 1, 5_275_681),
    "alexnet_cifar": (3, 32, 10, 2_472_266),
    "alexnet_cifar_small": (3, 28, 10, 1_387_786),
    "lenet5": (1, 32, 10, 61_706),
    "convnet_quick": (3, 32, 10, 145_578),
    "convnet_full": (3, 32, 10, 89_578),
    "convnet_figure1": (3, 32, 10, 89_578),
    "caffenet": (3, 227, 1000, 60_965_224),
    "zfnet": (3, 224, 1000, 62_357_608),
    "overfeat_fast": (3, 231, 1000, 145_920_872),
    "cnn_f": (3, 224, 1000, 60_834_536),
    "cnn_m": (3, 224, 1000, 102_908_520),
    "cnn_s": (3, 224, 1000, 102_908_520),
    "vgg11": (1, 224, 10, 128_806_154),
    "vgg11_eighth": (1, 224, 10, 2_018_346),
    "nin": (1, 224, 10, 1_992_166),
    "googlenet": (1, 224, 10, 5_977_530),
    "squeezenet1_0": (3, 224, 1000, 1_248_424),
    "squeezenet1_1": (3, 224, 1000, 1_235_496),
}
# Iandola et al., arXiv 1602.07360, table 1, and their SqueezeNet v1.1: first convolution (kernels, size), fire modules
# (inputs, 1 x 1 kernels of the squeeze layer, kernels of either half of the expand layer).
FIRES = [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)]
SQUEEZENETS = {"squeezenet1_0": (96, 7), "squeezenet1_1": (64, 3)}


composed = cache(plain)


def on_meta(*overrides: str, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return build.net(composed(*overrides), num_classes)


def test_every_model_has_an_expected_count() -> None:
    assert {*COUNTS, "torchvision", "timm"} == {path.stem for path in (CONFIG_DIR / "model").glob("*.yaml")}


@pytest.mark.parametrize("name", COUNTS)
def test_the_net_has_the_published_number_of_parameters(name: str) -> None:
    channels, size, classes, expected = COUNTS[name]
    net = on_meta(f"model={name}", f"model.in_channels={channels}", num_classes=classes)
    assert sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad) == expected
    assert net(torch.empty(2, channels, size, size, device="meta")).shape == (2, classes)


@pytest.mark.parametrize("name", LISTS)
def test_parameters_and_multiply_adds_follow_from_the_list_of_the_source(name: str) -> None:
    """The arithmetic uses nothing but the list of layers."""
    listed = LISTS[name]
    parameters, multiply_adds = counts(listed)
    assert (listed.channels, listed.size, listed.outputs, parameters) == COUNTS[name]
    net = on_meta(f"model={name}", f"model.in_channels={listed.channels}", num_classes=listed.outputs)
    rows = layer_rows(net, channels=listed.channels, size=listed.size)
    assert sum(row.multiply_adds for row in rows) == multiply_adds


@pytest.mark.parametrize("name", SQUEEZENETS)
def test_parameters_of_squeezenet_follow_from_its_table(name: str) -> None:
    width, kernel = SQUEEZENETS[name]
    parameters = width * (3 * kernel**2 + 1)
    for squeezed, expanded in FIRES:
        parameters += squeezed * (width + 1) + expanded * (squeezed + 1) + expanded * (9 * squeezed + 1)
        width = 2 * expanded
    assert parameters + 1000 * (width + 1) == COUNTS[name][-1]


def test_d2l_alexnet_with_two_hidden_layers_matches_its_source() -> None:
    net = on_meta("model=alexnet_d2l", "model.fc_widths=[4096,4096]", "model.in_channels=1", num_classes=10)
    assert sum(parameter.numel() for parameter in net.parameters()) == 46_764_746


def test_cnn_s_with_sizes_rounded_down_has_a_smaller_grid() -> None:
    net = on_meta("model=cnn_s", "model.pool_ceil=false", "model.pool_size=5", num_classes=1000)
    assert net.features(torch.empty(1, 3, 224, 224, device="meta")).shape[2:] == (5, 5)
    assert sum(parameter.numel() for parameter in net.parameters()) == 79_839_848


@pytest.mark.parametrize("name", [name for name in COUNTS if name in LISTS and name != "nin"])
def test_average_pooling_is_the_identity_at_the_published_size(name: str) -> None:
    channels, size, *_ = COUNTS[name]
    net = on_meta(f"model={name}", f"model.in_channels={channels}", num_classes=2)
    found = net.features(torch.empty(1, channels, size, size, device="meta")).shape[2:]
    assert found == (net.avgpool.output_size,) * 2


@pytest.mark.parametrize("net_class", [AlexNet, VGG, NiN, GoogLeNet])
def test_docstring_table_matches_the_net(net_class: Callable[..., nn.Module]) -> None:
    pattern = r"\| (\w+) +\| ([\d-]+) +\| (-|\d, \d) +\| ([\dx ]+?) +\| (\d+) +\|"
    rows = re.findall(pattern, net_class.__doc__ or "")
    with torch.device("meta"):
        net = net_class(1000)
    layers = {name.split(".")[-1]: layer for name, layer in net.named_modules() if name.count(".") <= 1}
    weighted = {
        name
        for name, layer in layers.items()
        if name not in ("features", "classifier", "") and list(layer.parameters())
    }
    assert {name for name, *_ in rows if not name.startswith("pool")} == weighted
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


@pytest.mark.parametrize(("ours", "theirs"), [(AlexNet, "alexnet"), (VGG, "vgg11")])
def test_equal_weights_give_bitwise_equal_logits_as_torchvision(ours: Callable[..., nn.Module], theirs: str) -> None:
    torch.manual_seed(0)
    reference = getattr(torchvision_models, theirs)(num_classes=10).eval()
    net = ours(10).eval()
    net.load_state_dict(dict(zip(net.state_dict(), reference.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(net(images), reference(images))


@pytest.mark.parametrize("name", COUNTS)
def test_every_net_supports_grey_and_colour_and_any_number_of_classes(name: str) -> None:
    for channels in (1, 3):
        net = on_meta(f"model={name}", f"model.in_channels={channels}", num_classes=7)
        assert net(torch.empty(2, channels, 96, 96, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ["vgg11", "nin", "googlenet"])
def test_width_scales_all_convolutions(name: str) -> None:
    def convolutions(width: float) -> list[int]:
        net = on_meta(f"model={name}", f"model.width={width}", num_classes=4)
        return [
            layer.out_channels for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.out_channels != 4
        ]

    assert convolutions(0.5) == [count // 2 for count in convolutions(1.0)]


@pytest.mark.parametrize(
    "name",
    ["alexnet_catdog", "alexnet_catdog_tf_bn", "alexnet_authors", "convnet_full", "vgg11", "nin", "googlenet"],
)
def test_training_reaches_every_parameter(train: Callable[..., float | None], tmp_path: Path, name: str) -> None:
    """Every parameter has a gradient, and that of the first layer is not zero."""
    widths = [override for override in TINY if override.startswith("model.")]
    train(f"model={name}", "model.width=0.1", "data.image_size=96", without=widths)
    (optimizer,) = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    assert list(optimizer["state"]) == [index for group in optimizer["param_groups"] for index in group["params"]]
    assert optimizer["state"][0]["exp_avg"].any()


def test_googlenet_stem_of_d2l_has_no_relu_after_conv2_and_conv3() -> None:
    names = [
        name for name, _ in on_meta("model=googlenet", "model.stem_relu=false", num_classes=2).features.named_children()
    ]
    assert names[:5] == ["conv1", "act1", "pool1", "conv2", "conv3"]


@pytest.mark.parametrize(
    ("net_class", "options", "message"),
    [
        (VGG, {"depths": [1, 1]}, "model.depths and model.widths must have one positive number per block"),
        (VGG, {"pool_size": 0}, "model.pool_size must be at least 1; got 0"),
        (NiN, {"widths": [1, 2]}, "model.widths needs 3 positive numbers and a positive width; got [1, 2] and 1.0"),
        (GoogLeNet, {"width": 0}, "model.width must be positive; got 0"),
    ],
)
def test_invalid_arguments_are_rejected(net_class: Callable[..., nn.Module], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        net_class(2, **options)


@pytest.mark.parametrize("name", [name for name in COUNTS if name not in SQUEEZENETS])
def test_the_error_for_a_small_image_names_the_smallest_size_that_works(name: str) -> None:
    net = on_meta(f"model={name}", "model.in_channels=3", num_classes=2)

    def works(size: int) -> bool:
        try:
            return net(torch.empty(2, 3, size, size, device="meta")).shape == (2, 2)
        except RuntimeError:
            return False

    smallest = next(size for size in range(1, 100) if works(size))
    net.check_image_size(smallest)
    for size in range(1, smallest):
        with pytest.raises(ValueError, match=f"data.image_size={size} is too small .*smallest size is {smallest}$"):
            net.check_image_size(size)


def test_the_error_for_a_small_image_names_the_layer() -> None:
    for net, message in (
        (VGG(2, widths=[1] * 5, fc_widths=[1]), "pool5 maps 1 x 1"),
        (NiN(2, widths=[1] * 3), "pool2 maps 2 x 2"),
    ):
        with pytest.raises(ValueError, match=message):
            net.check_image_size(31)
