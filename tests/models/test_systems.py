"""What holds for every net of `conf/model`: counts, shapes, the table in the docstring, training in any size and colour."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from alexlab.config import CONFIG_DIR, build
from alexlab.models.alexnet import AlexNet
from alexlab.models.googlenet import GoogLeNet
from alexlab.models.nin import NiN
from alexlab.models.vgg import VGG
from support.runs import TINY, plain

# model -> channels, classes (1 is one logit), trainable parameters; worked out from the sources' lists of layers.
COUNTS = {
    "alexnet": (3, 1000, 61_100_840),
    "alexnet_two_tower": (3, 1000, 60_965_224),
    "alexnet_half": (3, 1000, 16_630_440),
    "alexnet_quarter": (3, 1000, 4_675_912),
    "alexnet_catdog": (3, 2, 16_632_442),
    "alexnet_narrow": (3, 1000, 28_868_968),
    "alexnet_d2l": (1, 10, 29_983_434),
    "alexnet_catdog_tf": (3, 1, 5_274_657),
    "alexnet_catdog_tf_bn": (3, 1, 5_275_681),
    "vgg11": (1, 10, 128_806_154),
    "vgg11_eighth": (1, 10, 2_018_346),
    "nin": (1, 10, 1_992_166),
    "googlenet": (1, 10, 5_977_530),
}


def on_meta(*overrides: str, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return build.net(plain(*overrides), num_classes)


def test_every_model_is_counted() -> None:
    assert {*COUNTS, "torchvision"} == {path.stem for path in (CONFIG_DIR / "model").glob("*.yaml")}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_of_the_sources(name: str) -> None:
    channels, classes, expected = COUNTS[name]
    net = on_meta(f"model={name}", f"model.in_channels={channels}", num_classes=classes)
    assert sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad) == expected
    assert net(torch.empty(2, channels, 224, 224, device="meta")).shape == (2, classes)


def test_d2l_alexnet_with_its_second_hidden_layer() -> None:
    net = on_meta("model=alexnet_d2l", "model.fc_widths=[4096,4096]", "model.in_channels=1", num_classes=10)
    assert sum(parameter.numel() for parameter in net.parameters()) == 46_764_746


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("alexnet", 6),
        ("alexnet_two_tower", 6),
        ("alexnet_catdog", 6),
        ("alexnet_d2l", 5),
        ("alexnet_catdog_tf", 5),
        ("vgg11", 7),
    ],
)
def test_features_give_the_grid_so_that_nothing_is_averaged_at_224(name: str, grid: int) -> None:
    net = on_meta(f"model={name}", num_classes=2)
    assert net.features(torch.empty(1, 3, 224, 224, device="meta")).shape[2:] == (grid, grid)


@pytest.mark.parametrize("made", [AlexNet, VGG, NiN, GoogLeNet])
def test_docstring_table_is_what_the_net_does(made: Callable[..., nn.Module]) -> None:
    pattern = r"\| (\w+) +\| ([\d-]+) +\| (-|\d, \d) +\| ([\dx ]+?) +\| (\d+) +\|"
    rows = re.findall(pattern, made.__doc__ or "")
    with torch.device("meta"):
        net = made(1000)
    layers = {name.split(".")[-1]: layer for name, layer in net.named_modules() if name.count(".") <= 1}
    weighty = {
        name
        for name, layer in layers.items()
        if name not in ("features", "classifier", "") and list(layer.parameters())
    }
    assert {name for name, *_ in rows if not name.startswith("pool")} == weighty
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
def test_equal_weights_give_torchvision_s_logits_bit_for_bit(ours: Callable[..., nn.Module], theirs: str) -> None:
    torch.manual_seed(0)
    reference = getattr(torchvision_models, theirs)(num_classes=10).eval()
    net = ours(10).eval()
    net.load_state_dict(dict(zip(net.state_dict(), reference.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(net(images), reference(images))


@pytest.mark.parametrize("name", COUNTS)
def test_every_net_takes_grey_and_colour_and_any_number_of_classes(name: str) -> None:
    for channels in (1, 3):
        net = on_meta(f"model={name}", f"model.in_channels={channels}", num_classes=7)
        assert net(torch.empty(2, channels, 96, 96, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ["vgg11", "nin", "googlenet"])
def test_width_multiplies(name: str) -> None:
    def convolutions(width: float) -> list[int]:
        net = on_meta(f"model={name}", f"model.width={width}", num_classes=4)
        return [
            layer.out_channels for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.out_channels != 4
        ]

    assert convolutions(0.5) == [count // 2 for count in convolutions(1.0)]


@pytest.mark.parametrize("name", ["alexnet_catdog", "alexnet_catdog_tf_bn", "vgg11", "nin", "googlenet"])
def test_every_family_trains(train: Callable[..., float | None], name: str) -> None:
    own = [word for word in TINY if word.startswith("model.")]
    overrides = [f"model={name}", "model.width=0.05", "data.image_size=96"]
    if not name.startswith("alexnet"):
        assert train(*overrides, without=own) is not None
    else:
        assert train(*overrides) is not None


def test_stem_without_activation_as_published_by_d2l() -> None:
    names = [
        name for name, _ in on_meta("model=googlenet", "model.stem_relu=false", num_classes=2).features.named_children()
    ]
    assert names[:5] == ["conv1", "act1", "pool1", "conv2", "conv3"]


@pytest.mark.parametrize(
    ("made", "options", "words"),
    [
        (VGG, {"depths": [1, 1]}, "model.depths and model.widths must be as many positive numbers, one for each block"),
        (NiN, {"widths": [1, 2]}, "model.widths needs 3 positive numbers and a positive width; got [1, 2] and 1.0"),
        (GoogLeNet, {"width": 0}, "model.width must be positive; got 0"),
    ],
)
def test_words(made: Callable[..., nn.Module], options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        made(2, **options)


def test_too_small_an_image_names_the_layer() -> None:
    for net, words in (
        (VGG(2, widths=[1] * 5, fc_widths=[1]), "pool5 gets 1 x 1"),
        (NiN(2, widths=[1] * 3), "pool2 gets 2 x 2"),
    ):
        with pytest.raises(ValueError, match=words):
            net.check_image_size(31)
