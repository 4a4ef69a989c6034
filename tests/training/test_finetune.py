import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alexlab.errors import ConfigError
from alexlab.models.alexnet import AlexNet
from alexlab.training.callbacks.finetune import Finetune

Train = Callable[..., float | None]
FINETUNE = ("callbacks=[default,finetune]", "model.norm=batch", "seed=4")


def state(path: Path) -> dict[str, Any]:
    return torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def changed(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    return {key for key, value in first.items() if not torch.equal(value, second[key])}


def test_frozen_parts_are_unchanged_until_unfreeze_epoch(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train(*FINETUNE, "optimizer.lr=0.0", "optimizer.weight_decay=0.0", run_dir=tmp_path / "start")
    train(*FINETUNE, "optimizer.lr=0.01", "trainer.max_epochs=2", run_dir=tmp_path / "frozen")
    train(
        *FINETUNE,
        "optimizer.lr=0.01",
        "trainer.max_epochs=2",
        "callbacks.finetune.unfreeze_epoch=1",
        run_dir=tmp_path / "unfrozen",
    )
    start, frozen, unfrozen = (state(tmp_path / name) for name in ("start", "frozen", "unfrozen"))
    parts = {key.split(".")[1] for key in changed(start, frozen)}
    assert parts == {"classifier"}, "frozen norms keep their statistics"
    assert {key.split(".")[1] for key in changed(start, unfrozen)} == {"features", "classifier"}
    assert any("running_mean" in key for key in changed(start, unfrozen)), "unfrozen norms update their statistics"
    assert "frozen: features, " in caplog.text
    assert "frozen for 1 epochs: features" in caplog.text
    assert "epoch 2: features unfrozen" in caplog.text


def test_two_ranks_average_gradients_after_unfreezing(train: Train, tmp_path: Path) -> None:
    """Two ranks reach the same weights as one."""
    options = (
        "callbacks=[default,finetune]",
        "callbacks.finetune.unfreeze_epoch=1",
        "trainer.max_epochs=3",
        "optimizer=sgd",
        "optimizer.lr=0.05",
        "model.dropout=0",
    )
    train(*options, run_dir=tmp_path / "one")
    train(*options, "trainer.devices=2", run_dir=tmp_path / "two")
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-3, atol=1e-5)


def net() -> AlexNet:
    return AlexNet(2, widths=[4] * 5, fc_widths=[8])


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ("feature", "must name modules of the net: features, features.conv1, .*; got 'feature'"),
        (["features", "classifier"], "leaves nothing to train"),
    ],
)
def test_invalid_names_are_rejected(freeze: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Finetune(freeze).check(net())
    if isinstance(freeze, list):
        with pytest.raises(ConfigError, match=r"leaves nothing to train before callbacks\.finetune\.unfreeze_epoch"):
            Finetune(freeze, unfreeze_epoch=1).check(net())


def test_invalid_arguments_are_reported_before_any_work(train: Train) -> None:
    with pytest.raises(ConfigError, match="must name modules of the net"):
        train("callbacks=[default,finetune]", "callbacks.finetune.freeze=tail")
    with pytest.raises(ConfigError, match="unfreeze_epoch must be at least 1; got 0"):
        train("callbacks=[default,finetune]", "callbacks.finetune.unfreeze_epoch=0")
