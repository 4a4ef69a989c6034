import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from alexlab.config import CONFIG_DIR, build
from alexlab.errors import ConfigError
from alexlab.models.alexnet import AlexNet
from alexlab.models.googlenet import GoogLeNet
from alexlab.models.init import SCHEMES, init_weights
from alexlab.models.nin import NiN
from alexlab.models.two_tower import Tower
from alexlab.models.vgg import VGG
from support.runs import plain

MODELS = sorted(
    path.stem for path in (CONFIG_DIR / "model").glob("*.yaml") if "width" in plain(f"model={path.stem}")["model"]
)
NUM_LAYERS = {"googlenet": 58, "nin": 12, "vgg11": 11, "vgg11_eighth": 11, "lenet5": 5, "convnet_quick": 5}


def fans(layer: Any) -> tuple[int, int]:
    """Return fan in and fan out of a layer."""
    area = math.prod(layer.weight.shape[2:])
    return layer.weight.shape[1] * area, layer.weight.shape[0] * area


def he(layer: nn.Module) -> float:
    return math.sqrt(2 / fans(layer)[0])


def glorot(layer: nn.Module) -> float:
    return math.sqrt(2 / sum(fans(layer)))


def kaiming(layer: nn.Module) -> float:
    return math.sqrt(2 / fans(layer)[1]) if isinstance(layer, nn.Conv2d) else 0.01


# Expected standard deviation of a layer's weight; PyTorch's default is uniform in +-1 / sqrt(fan in).
STD: dict[str, Callable[[nn.Module], float]] = {
    "torch": lambda layer: math.sqrt(1 / 3 / fans(layer)[0]),
    "he": he,
    "xavier": glorot,
    "glorot": glorot,
    "kaiming": kaiming,
    "paper2012": lambda layer: 0.01,
    "authors2012": lambda layer: 0.01,
    "cuda_convnet": lambda layer: 0.01,
}
OTHER_STD = {
    "authors2012": {f"features.conv{number}": 0.03 for number in (3, 4, 5, 6)},
}


def layers_of(net: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def test_every_scheme_has_an_expected_formula() -> None:
    assert set(STD) == set(SCHEMES)


@pytest.mark.parametrize("model", MODELS)
def test_every_layer_of_every_net_follows_every_scheme(model: str) -> None:
    """Nets of a tenth of the width. The relative error of the standard deviation of n values is 1 / sqrt(2 n); allow five times it."""
    config = plain(f"model={model}", "model.width=0.1", "data=folder", "data.root=x")
    for scheme in SCHEMES:
        torch.manual_seed(0)
        config["model"]["init"] = scheme
        layers = layers_of(build.net(config, 10))
        assert len(layers) == NUM_LAYERS.get(model, len(layers)) >= (4 if "convnet" in model else 5)
        for name, layer in layers.items():
            tolerance = 5 / math.sqrt(2 * layer.weight.numel())
            other = {} if model.startswith(("googlenet", "nin", "vgg")) else OTHER_STD.get(scheme, {})
            std = other.get(name) or STD[scheme](layer)
            if scheme == "cuda_convnet" and name == next(iter(layers)):
                std = 1e-4
            assert layer.weight.std(correction=0).item() == pytest.approx(std, rel=tolerance), (scheme, name)
            if scheme not in ("torch", "paper2012", "authors2012"):
                assert (layer.bias == 0).all(), (scheme, name)


@pytest.mark.parametrize("scheme", ["paper2012", "authors2012"])
def test_the_schemes_of_2012_set_some_biases_to_one(scheme: str) -> None:
    six = build.net(plain("model=alexnet_six_convs", "model.width=0.1", f"model.init={scheme}"), 10)
    five = {"features.conv2", "features.conv4", "features.conv5", "classifier.fc6", "classifier.fc7"}
    for net, ones in (
        (VGG(10, width=0.1, init=scheme), {"classifier.fc1", "classifier.fc2"}),
        (GoogLeNet(10, width=0.1, init=scheme), set()),
        (AlexNet(10, width=0.1, init=scheme), five),
        (AlexNet(10, width=0.1, init=scheme, skip_convs=[1, 3]), five),
        (six, five - {"classifier.fc6"} | {"features.conv6", "classifier.fc8"}),
    ):
        for name, layer in layers_of(net).items():
            assert (layer.bias == float(name in ones)).all(), name


def test_xavier_and_glorot_are_the_same_scheme() -> None:
    nets = []
    for scheme in ("xavier", "glorot"):
        torch.manual_seed(0)
        nets.append(NiN(3, width=0.1, init=scheme).state_dict())
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())


def test_glorot_is_uniform() -> None:
    torch.manual_seed(0)
    layer = layers_of(AlexNet(10, width=0.5, init="glorot"))["features.conv3"]
    assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(3) * glorot(layer), rel=0.01)


def test_torch_keeps_the_default_of_pytorch() -> None:
    torch.manual_seed(0)
    expected = nn.Conv2d(3, 48, 11, 4, 2)
    torch.manual_seed(0)
    net = AlexNet(10, widths=[48, 128, 192, 192, 128], fc_widths=[256, 256])
    assert torch.equal(net.features.conv1.weight, expected.weight)


def test_the_authors_draw_conv3_to_conv5_three_times_as_wide() -> None:
    torch.manual_seed(0)
    layers = layers_of(AlexNet(10, widths=[96, 256, 384, 384, 256], groups=[1, 2, 1, 2, 2], init="authors2012"))
    found = {name: round(layer.weight.std().item(), 3) for name, layer in layers.items()}
    assert found == {
        "features.conv1": 0.01,
        "features.conv2": 0.01,
        "features.conv3": 0.03,
        "features.conv4": 0.03,
        "features.conv5": 0.03,
        "classifier.fc6": 0.01,
        "classifier.fc7": 0.01,
        "classifier.fc8": 0.01,
    }


def test_convolutions_of_all_dimensions_are_initialized() -> None:
    net = torch.nn.Sequential(torch.nn.Conv3d(2, 50, 3), torch.nn.Conv1d(50, 60, 5), torch.nn.ConvTranspose2d(3, 4, 2))
    unchanged = copy.deepcopy(net[2].state_dict())
    init_weights(net, "he")
    for layer in net[:2]:
        assert layer.weight.std().item() == pytest.approx(he(layer), rel=0.05) and (layer.bias == 0).all()
    assert all(torch.equal(value, unchanged[name]) for name, value in net[2].state_dict().items())


def test_invalid_schemes_are_rejected() -> None:
    with pytest.raises(
        ValueError,
        match=r"model\.init must be one of torch, he, xavier, glorot, kaiming, paper2012, authors2012, cuda_convnet; got 'orthogonal'",
    ):
        AlexNet(2, widths=[1] * 5, fc_widths=[1], init="orthogonal")
    config = plain("model=torchvision", "model.init=orthogonal", "data=folder", "data.root=x")
    with pytest.raises(ConfigError, match=r"model\.init must be one of torch, .*; got 'orthogonal'"):
        build.net(config, 2)


class OwnNet(nn.Module):
    """Net as in docs/extending.md, whose constructor has no `init`."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(in_channels, 64, 5, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Linear(64, num_classes)


# Nets that take no scheme, and their number of convolutions and linear layers.
FOREIGN = {
    ("model=torchvision", "model.name=resnet18"): 21,
    ("model=torchvision", "model.name=squeezenet1_1"): 26,
    ("model=torchvision", "model.name=mobilenet_v3_small"): 54,
    ("model=timm", "model.name=resnet18"): 21,
    ("model=timm", "model.name=convnext_atto"): 41,
    ("own",): 2,
}


@pytest.mark.parametrize("overrides", FOREIGN, ids="-".join)
def test_every_layer_of_a_net_of_other_code_follows_the_scheme(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The formulas are those of the nets of alexlab; `torch` leaves a net as its own code initialized it."""
    if overrides == ("own",):
        monkeypatch.setattr("alexlab.config.instantiate.locate", lambda path, where: OwnNet)
        config: dict[str, Any] = {"model": {"_target_": "own_net.OwnNet", "weights": None}}
    else:
        config = plain(*overrides, "data=folder", "data.root=x")
    for scheme in ("he", "xavier", "kaiming"):
        config["model"]["init"] = scheme
        torch.manual_seed(0)
        layers = layers_of(build.net(config, 10))
        assert len(layers) == FOREIGN[overrides]
        for name, layer in layers.items():
            tolerance = 5 / math.sqrt(2 * layer.weight.numel())
            assert layer.weight.std(correction=0).item() == pytest.approx(STD[scheme](layer), rel=tolerance), name
            assert layer.bias is None or (layer.bias == 0).all(), name
    states = []
    for scheme in ("torch", None):
        config["model"].pop("init") if scheme is None else config["model"].update(init=scheme)
        torch.manual_seed(0)
        states.append(build.net(config, 10).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_both_towers_get_their_half_of_the_initialized_net() -> None:
    whole = AlexNet(10, width=0.1, groups=[1, 2, 1, 2, 2], norm="lrn", init="he")
    expected = {name: value.clone() for name, value in whole.state_dict().items()}
    halves = [Tower(copy.deepcopy(whole), tower).state_dict() for tower in (0, 1)]
    for name, value in expected.items():
        assert torch.equal(torch.cat([half[name] for half in halves]), value), name


def test_loaded_weights_replace_the_initial_ones(tmp_path: Path) -> None:
    config = plain("model=torchvision", "model.name=squeezenet1_1", "model.init=he", "data=folder", "data.root=x")
    saved = build.net(config, 3)
    torch.save(saved.state_dict(), tmp_path / "saved.pth")
    config["model"]["weights"] = str(tmp_path / "saved.pth")
    net = build.net(config, 3)
    found = build.pretrained(config, net, SimpleNamespace(classes=("a", "b", "c")))
    assert found is not None and not torch.equal(net.features[0].weight, saved.features[0].weight)
    found.load_into(net)
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in net.state_dict().items())
