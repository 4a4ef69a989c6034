import math

import pytest
import torch
from torch import nn

from alexlab.models.alexnet import AlexNet
from alexlab.models.vgg import VGG


def layers(init: str) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    net = AlexNet(10, widths=[48, 128, 192, 192, 128], fc_widths=[256, 256], init=init)
    return {
        name.rsplit(".", 1)[-1]: layer
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def test_paper2012() -> None:
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    for name, layer in layers("paper2012").items():
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05), name
        assert abs(layer.weight.mean().item()) < 0.001, name
        assert (layer.bias == float(name in ones)).all(), name


def test_kaiming() -> None:
    for name, layer in layers("kaiming").items():
        assert (layer.bias == 0).all(), name
        fan_out = layer.weight.shape[0] * math.prod(layer.weight.shape[2:])
        std = math.sqrt(2 / fan_out) if isinstance(layer, nn.Conv2d) else 0.01
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05), name


def test_glorot() -> None:
    for name, layer in layers("glorot").items():
        assert (layer.bias == 0).all(), name
        area = math.prod(layer.weight.shape[2:])
        bound = math.sqrt(6 / ((layer.weight.shape[0] + layer.weight.shape[1]) * area))
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01), name
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name


def test_torch_is_pytorch_s_own() -> None:
    torch.manual_seed(0)
    expected = nn.Conv2d(3, 48, 11, 4, 2)
    assert torch.equal(layers("torch")["conv1"].weight, expected.weight)


def test_words() -> None:
    with pytest.raises(ValueError, match=r"model\.init must be one of torch, paper2012, kaiming, glorot; got 'xavier'"):
        AlexNet(2, widths=[1] * 5, fc_widths=[1], init="xavier")
    with pytest.raises(ValueError, match=r"model\.init=paper2012 is made for the layers of AlexNet; got VGG"):
        VGG(2, widths=[1] * 5, fc_widths=[1], init="paper2012")
