"""Arguments of config nodes, checked against the signature before the call."""

import re
from typing import Any

import pytest
from torchvision.transforms.v2 import RandomErasing

from alexlab.config.instantiate import bind
from alexlab.data.config import DataConfig
from alexlab.errors import ConfigError


def of_numbers(
    lr: float = 0.1, steps: int = 3, nesterov: bool = False, rate: float | None = 1.0, name: str = "x"
) -> None:
    pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": "0,1"}, "x.lr must be a number; got '0,1'"),
        ({"lr": "0.1"}, "x.lr must be a number; got '0.1'"),
        ({"lr": None}, "x.lr must be a number; got null"),
        ({"steps": "1e3"}, "x.steps must be an integer; got '1e3'"),
        ({"nesterov": "false"}, "x.nesterov must be true or false; got 'false'"),
        ({"rate": "1"}, "x.rate must be a number; got '1'"),
    ],
)
def test_strings_and_null_are_rejected_as_numbers(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        bind(of_numbers, "x", **given)


def test_values_allowed_by_the_annotation_pass() -> None:
    bind(of_numbers, "x", lr=1, rate=None, name="0.1")
    bind(RandomErasing, "x", value="random")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_workers": "auto"}, "data.num_workers must be null or an integer; got 'auto'"),
        ({"num_workers": 1.5}, "data.num_workers must be null or an integer; got 1.5"),
        ({"fold": True}, "data.fold must be null or an integer; got True"),
        ({"intensity_range": 4095}, "data.intensity_range must be null or a list of numbers; got 4095"),
        ({"intensity_range": ["a", "b"]}, "data.intensity_range must be null or a list of numbers; got ['a', 'b']"),
        ({"mean": 0.5}, "data.mean must be null or a list of numbers; got 0.5"),
    ],
)
def test_values_whose_default_is_null_are_checked_by_their_annotation(given: dict[str, Any], message: str) -> None:
    required = {"root": "x", "image_size": 64, "channels": 3, "mean": None, "std": None, "batch_size": 8}
    bind(DataConfig, "data", **required)
    with pytest.raises(ConfigError, match=re.escape(message)):
        bind(DataConfig, "data", **required | given)
