import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from alexlab.errors import ConfigError
from alexlab.models.alexnet import AlexNet
from alexlab.training.param_groups import parameter_groups, parameters_by_kind


def tiny() -> AlexNet:
    return AlexNet(2, widths=[4] * 5, fc_widths=[8], norm="batch")


def test_every_parameter_has_one_kind() -> None:
    for net in (tiny(), resnet18()):
        found = parameters_by_kind(net)
        every = [id(parameter) for parameters in found.values() for parameter in parameters]
        assert sorted(every) == sorted(id(parameter) for parameter in net.parameters())
    counts = {kind: len(parameters) for kind, parameters in parameters_by_kind(tiny()).items()}
    assert counts == {"conv": 5, "linear": 2, "bias": 7, "norm": 10}
    assert len(parameters_by_kind(resnet18())["norm"]) == 40


def test_the_head_has_its_own_groups() -> None:
    net = tiny()
    head = {"classifier.fc7.weight", "classifier.fc7.bias"}
    groups = {group["name"]: group for group in parameter_groups(net, head, head_lr=0.5)}
    assert {name: group.get("lr") for name, group in groups.items()} == {"body": None, "head": 0.5}
    assert [len(group["params"]) for group in groups.values()] == [22, 2]
    groups = {group["name"]: group for group in parameter_groups(net, head, head_lr=0.5, norm_weight_decay=0.0)}
    assert list(groups) == ["body conv", "body linear", "body bias", "body norm", "head linear", "head bias"]
    assert groups["head bias"]["lr"] == 0.5
    assert groups["body norm"]["weight_decay"] == 0.0


def test_biases_and_layers_have_their_own_rates() -> None:
    """The recipe of the authors of 2012: biases at twice the rate without decay, conv1 at fixed rates from epoch 68."""
    net = AlexNet(2, widths=[4] * 5, fc_widths=[8])
    layers = {"conv1": [[72, 0], [68, 1e-5]]}
    groups = {g["name"]: g for g in parameter_groups(net, bias_lr=0.02, bias_weight_decay=0.0, layer_lrs=layers)}
    assert list(groups) == ["body conv", "body linear", "body bias", "conv1 conv", "conv1 bias"]
    assert [len(group.pop("params")) for group in groups.values()] == [4, 2, 6, 1, 1]
    biases = {"lr": 0.02, "weight_decay": 0.0}
    changes = {"lr_changes": [[68, 1e-5], [72, 0]]}
    assert [{**group, "name": None} for group in groups.values()] == [
        {"name": None},
        {"name": None},
        {"name": None, **biases},
        {"name": None, **changes},
        {"name": None, **biases, **changes},
    ]
    assert parameter_groups(net, layer_lrs={"features.conv1": [[1, 0.1]]})[1]["params"][0] is net.features.conv1.weight
    head = {"classifier.fc7.weight", "classifier.fc7.bias"}
    groups = {group["name"]: group for group in parameter_groups(net, head, head_lr=0.5, bias_lr=0.02)}
    assert (groups["head bias"]["lr"], groups["body bias"]["lr"]) == (0.5, 0.02)
    both = {g["name"]: g for g in parameter_groups(net, head, head_lr=0.5, layer_lrs={"fc7": [[10, 1e-3]]})}
    assert (both["fc7 head"]["lr"], both["fc7 head"]["lr_changes"]) == (0.5, [[10, 1e-3]]), "its rate until epoch 10"


def test_norms_and_biases_of_transformers() -> None:
    net = nn.Sequential(nn.RMSNorm(4), nn.MultiheadAttention(4, 2))
    kinds = {kind: len(parameters) for kind, parameters in parameters_by_kind(net).items()}
    assert kinds == {"conv": 0, "linear": 2, "bias": 2, "norm": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias_lr": -1}, "param_groups.bias_lr must be at least 0; got -1"),
        (
            {"layer_lrs": {"conv9": [[1, 0.1]]}},
            "param_groups.layer_lrs must name one layer each of features, features.conv1, ",
        ),
        ({"layer_lrs": {"conv": [[1, 0.1]]}}, "classifier.fc7; got 'conv'"),
        (
            {"layer_lrs": {"conv1": [68, 0.1]}},
            "layer_lrs.conv1 must be pairs of an epoch and a learning rate, such as ",
        ),
        ({"layer_lrs": {"conv1": [[68, -1]]}}, "[[68,1e-5],[72,0]]; got [[68, -1]]"),
    ],
)
def test_invalid_rates_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parameter_groups(AlexNet(2, widths=[4] * 5, fc_widths=[8]), **options)


def test_there_is_one_group_without_options() -> None:
    net = tiny()
    assert [group.keys() for group in parameter_groups(net)] == [{"params"}]
    groups = {group["name"]: group for group in parameter_groups(net, conv_weight_decay=0.002, norm_weight_decay=0.0)}
    assert {name: group.get("weight_decay") for name, group in groups.items()} == {
        "conv": 0.002,
        "linear": None,
        "bias": None,
        "norm": 0.0,
    }


def test_an_l2_penalty_equals_coupled_weight_decay_of_twice_its_factor() -> None:
    """The gradient of 0.001 sum(w^2) is 0.002 w, which Adam's coupled weight decay adds to the gradient."""
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    penalized, decayed = tiny(), tiny()
    decayed.load_state_dict(penalized.state_dict())
    by_loss = torch.optim.Adam(penalized.parameters(), 1e-3)
    by_decay = torch.optim.Adam(parameter_groups(decayed, conv_weight_decay=0.002), 1e-3)
    for net, optimizer in ((penalized, by_loss), (decayed, by_decay)):
        torch.manual_seed(1)
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        if net is penalized:
            loss = loss + 0.001 * sum(kernel.square().sum() for kernel in parameters_by_kind(net)["conv"])
        loss.backward()
        optimizer.step()
    for one, other in zip(penalized.parameters(), decayed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_configured_groups_reach_the_optimizer(train: Callable[..., float | None], tmp_path: Path) -> None:
    train(
        "optimizer=adam",
        "param_groups.conv_weight_decay=0.002",
        "param_groups.bias_weight_decay=0.0",
        "optimizer.weight_decay=0.1",
    )
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.002, 0.1, 0.0]
