from collections.abc import Callable

import pytest
import torch

from alexlab.models.torchvision import torchvision_net


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet", "squeezenet1_1", "vit_b_32"])
def test_any_classifier_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        net = torchvision_net(7, name=name)
        assert net(torch.empty(2, 3, 224, 224)).shape == (2, 7)


def test_grey_images() -> None:
    with torch.device("meta"):
        assert torchvision_net(2, name="resnet18", in_channels=1)(torch.empty(2, 1, 64, 64)).shape == (2, 2)


def test_it_trains(train: Callable[..., float | None]) -> None:
    from support.runs import TINY

    own = [word for word in TINY if word.startswith("model.")]
    assert train("model=torchvision", "model.name=squeezenet1_1", without=own) is not None


def test_words() -> None:
    with pytest.raises(
        ValueError, match=r"model\.name must be a classifier of torchvision; got 'resnet19', near it are"
    ):
        torchvision_net(2, name="resnet19")
    with pytest.raises(ValueError, match="got 'fcn_resnet50'"):
        torchvision_net(2, name="fcn_resnet50")
