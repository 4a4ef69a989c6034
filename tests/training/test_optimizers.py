import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alexlab.errors import ConfigError
from alexlab.training.optimizers import VelocitySGD
from support.exact_resume import RecordedRun, compare


def path_of(optimizer: Any, weight: torch.nn.Parameter, rates: list[float], gradient: float) -> list[float]:
    """Return the weight after each step with a constant gradient."""
    found = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        found.append(weight.item())
    return found


def test_the_velocity_follows_the_rule_of_the_paper() -> None:
    """v := .9 v - .0005 lr w - lr g, w := w + v (section 5), by hand from w = 1, v = 0, g = 2 and rates .01, .01, .001.

    Step 1: v = -.0005 x .01 x 1 - .01 x 2 = -.020005, w = .979995.
    Step 2: v = .9 x -.020005 - .0005 x .01 x .979995 - .02 = -.038009399975, w = .941985600025.
    Step 3: v = .9 x -.038009399975 - .0005 x .001 x .941985600025 - .002 = -.0362089309703, w = .9057766690547.
    """
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = VelocitySGD([weight], lr=0.01, momentum=0.9, weight_decay=5e-4)
    found = []
    for rate in (0.01, 0.01, 0.001):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.full_like(weight, 2.0)
        optimizer.step()
        found.append(weight.item())
    assert found == pytest.approx([0.979995, 0.941985600025, 0.9057766690547], rel=1e-12)
    assert optimizer.state[weight]["velocity"].item() == pytest.approx(-0.0362089309703, rel=1e-11)


def test_only_a_change_of_the_rate_distinguishes_it_from_pytorch() -> None:
    """A velocity continues at the old rate: dividing the rate by 10 must not divide what was accumulated before."""
    rates = [0.1] * 20 + [0.01] * 3
    one, other = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    own = path_of(VelocitySGD([one], momentum=0.9, weight_decay=0.0), one, rates, gradient=1.0)
    torchs = path_of(torch.optim.SGD([other], lr=0.1, momentum=0.9), other, rates, gradient=1.0)
    assert own[:20] == pytest.approx(torchs[:20], rel=1e-5)
    before = 1 - 0.9**20  # of the final length of the velocity, which is lr / (1 - momentum) = 1
    assert own[20] - own[19] == pytest.approx(-0.9 * before - 0.01, rel=1e-5)
    assert torchs[20] - torchs[19] == pytest.approx(-0.09 * before - 0.01, rel=1e-5)


def test_a_layer_with_rate_0_stops_at_once() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    found = path_of(VelocitySGD([weight], momentum=0.5, weight_decay=0.1), weight, [1.0, 0.0, 0.0, 0.0], gradient=1.0)
    assert found == [-1.0] * 4


def test_parameters_without_a_gradient_stay() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    VelocitySGD([weight], weight_decay=1.0).step()
    assert weight.item() == 1


def test_a_closure_is_evaluated_with_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(1))

    def closure() -> torch.Tensor:
        loss = weight.sum()
        loss.backward()
        return loss

    assert VelocitySGD([weight], lr=0.5, momentum=0.0, weight_decay=0.0).step(closure).item() == 1
    assert weight.item() == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "optimizer.momentum must be in [0, 1); got 1.0"),
        ({"lr": -1.0}, "optimizer.lr must be at least 0; got -1.0"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay must be at least 0; got -1.0"),
    ],
)
def test_invalid_values_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        VelocitySGD([torch.nn.Parameter(torch.ones(1))], **options)


def test_resuming_around_a_change_of_the_rates_is_exact(train: Callable[..., Any], tmp_path: Path) -> None:
    """The rate is divided after 6 of 12 steps, when conv1 and the colour noise stop. All later checkpoints are equal."""
    overrides = (
        *("data.batch_size=4", "trainer.max_epochs=2", "callbacks.checkpoint.every_n_steps=1"),
        *("callbacks.epochs.curves=false", "optimizer=velocity_sgd", "param_groups.bias_lr=0.02"),
        *("param_groups.bias_weight_decay=0.0", "+param_groups.layer_lrs.conv1=[[1,0.0]]"),
        *("scheduler=multistep", "scheduler.milestones=[1]", "augmentation=paper2012", "data.num_workers=2"),
        *("augmentation.train.pca.scale=std", "augmentation.train.pca.end_epoch=1"),
    )
    run = RecordedRun(train, tmp_path)
    whole = run(*overrides, name="whole")
    last = torch.load(whole / "012.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    expected = {"body conv": 0.001, "body linear": 0.001, "body bias": 0.002, "conv1 conv": 0, "conv1 bias": 0}
    assert {group["name"]: group["lr"] for group in last} == pytest.approx(expected)
    for point in ("005", "006", "008"):
        resumed = run(*overrides, name=f"from_{point}", begin=whole / f"{point}.ckpt")
        assert compare(whole, resumed, f"{point}.ckpt") == 12 - int(point)
