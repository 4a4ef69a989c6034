from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexlab.models.torchvision import torchvision_net
from support.runs import TINY


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet", "squeezenet1_1", "vit_b_32"])
def test_any_torchvision_classifier_has_the_given_number_of_outputs(name: str) -> None:
    with torch.device("meta"):
        net = torchvision_net(7, name=name)
        assert net(torch.empty(2, 3, 224, 224)).shape == (2, 7)


def test_the_first_convolution_is_replaced_for_grey_images() -> None:
    with torch.device("meta"):
        assert torchvision_net(2, name="resnet18", in_channels=1)(torch.empty(2, 1, 64, 64)).shape == (2, 2)


def test_training_reaches_every_parameter(train: Callable[..., float | None], tmp_path: Path) -> None:
    widths = [override for override in TINY if override.startswith("model.")]
    train("model=torchvision", "model.name=squeezenet1_1", without=widths)
    (optimizer,) = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    assert all(state["exp_avg"].any() for state in optimizer["state"].values())


def test_unknown_names_are_rejected() -> None:
    with pytest.raises(
        ValueError, match=r"model\.name must be a classifier of torchvision; got 'resnet19'; similar names are"
    ):
        torchvision_net(2, name="resnet19")
    with pytest.raises(ValueError, match="got 'fcn_resnet50'"):
        torchvision_net(2, name="fcn_resnet50")
