"""The metric that chooses the best epoch: exact on one and on two devices, stored, and refused if it cannot be used."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from alexlab.cli.recorded_config import _check_changeable
from alexlab.config.build import callbacks
from alexlab.config.monitors import optimized_metric, with_mode
from alexlab.errors import ConfigError
from alexlab.records.optimized import OptimizedMetric
from alexlab.records.record import RunRecord
from alexlab.records.safe_load import load_file
from support.runs import plain, rows

Train = Callable[..., float | None]


def test_the_best_epoch_is_that_of_the_metric_on_any_number_of_devices(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for devices in (1, 2):
        options = ("metrics=f1", "optimized_metric=val/f1", "trainer.max_epochs=4", "optimizer.lr=0.003", "seed=5")
        run_dir = tmp_path / str(devices)
        score = train(*options, f"trainer.devices={devices}", "logger=csv", run_dir=run_dir)
        epochs, record = rows(run_dir / "metrics.csv"), RunRecord(run_dir).read()
        ranks = {int(row["epoch"]): (float(row["val/f1"]), -float(row["val/loss"])) for row in epochs}
        best = max(ranks, key=lambda epoch: ranks[epoch])
        saved = load_file(run_dir / "checkpoints/best.ckpt")
        assert record["best"]["epoch"] == saved["epoch"] + 1 == best
        assert record["optimized"] == {"name": "val/f1", "mode": "max"}
        assert score == record["scores"]["best/f1"] == pytest.approx(ranks[best][0])
        assert saved["alexlab"]["config"]["optimized_metric"] == "val/f1"
        assert saved["callbacks"]["CheckpointCallback"]["best_score"] == pytest.approx(ranks[best][0])
        assert "test/f1" in record["scores"]
        found[devices] = record["best"]["f1"], best
    assert found[1] == found[2]
    assert "the best epoch has the highest val/f1" in " ".join(capfd.readouterr().out.split())


def test_the_direction_follows_from_the_metric() -> None:
    config = plain("optimized_metric=val/loss", "callbacks=[default,early_stopping]", "scheduler=plateau")
    assert optimized_metric(config) == OptimizedMetric("val/loss", "min")
    found: dict[str, Any] = {type(callback).__name__: callback for callback in callbacks(config)}
    for name in ("CheckpointCallback", "EarlyStopping"):
        assert (found[name].monitor, found[name].mode) == ("val/loss", "min")
    assert with_mode(config["scheduler"], config, "scheduler")["mode"] == "min"
    config["metrics"]["ece"] = {"_target_": "torchmetrics.classification.MulticlassCalibrationError"}
    assert optimized_metric(config | {"optimized_metric": "val/ece"}).mode == "min"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test/top1", "optimized_metric must be a metric of the validation split: val/top1, val/top5, val/loss, val/all; got"),
        ("val/f1", "got 'val/f1'; metrics=f1 adds val/f1"),
        ("val/all", "needs a metric whose class has higher_is_better = True or False, as those in torchmetrics"),
    ],
)  # fmt: skip
def test_other_metrics_are_refused(name: str, message: str) -> None:
    config = plain()
    config["metrics"] = {"all": {"_target_": "torchmetrics.classification.MulticlassConfusionMatrix"}}
    with pytest.raises(ConfigError, match=re.escape(message)):
        optimized_metric(config | {"optimized_metric": name})


def test_equal_values_are_ranked_by_the_loss_and_nan_is_the_worst() -> None:
    rank = OptimizedMetric("val/f1", "min").rank
    assert rank(0.1, 5.0) > rank(0.2, 1.0) > rank(0.2, 2.0) > rank(float("nan"), 0.0)
    assert rank(0.2, 1.0) == rank(0.2, 1.0 + 1e-12), "32 bits"


@pytest.mark.parametrize("override", ["optimized_metric=val/loss", "callbacks.checkpoint.monitor=val/loss"])
def test_a_resumed_run_keeps_its_metric(override: str) -> None:
    assert OmegaConf.create(plain())["optimized_metric"] == "val/top1"
    (parsed,) = OverridesParser.create().parse_overrides([override])
    with pytest.raises(ConfigError, match="a resumed run keeps the metrics by which epochs are compared, so"):
        _check_changeable(parsed, Path("run"))


def test_tags_must_be_strings(train: Train) -> None:
    with pytest.raises(
        ConfigError, match=re.escape("tags must be strings, such as tags=[baseline,paper]; tag 2 is None")
    ):
        train("tags=[a,null]")
