"""Final scores: the best checkpoint in 32 bits, regardless of the precision of the training and of its validations."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alexlab.config.data import data_config
from alexlab.config.validate import check_objects
from alexlab.errors import ConfigError
from alexlab.records.layout import BEST
from alexlab.records.record import RunRecord
from alexlab.records.run import Run
from alexlab.records.safe_load import load_file
from alexlab.records.saved_predictions import read_predictions
from alexlab.tasks.evaluate import main as evaluate
from alexlab.training.module import Classifier
from support.runs import TINY, plain, rows, scalars

Train = Callable[..., float | None]
PRECISION = "trainer.precision=32-true"  # of TINY


def evaluated(run_dir: Path, split: str) -> dict[str, Any]:
    """Return the scores that `evaluate.py` computes."""
    out = run_dir / split
    out.mkdir()
    config = plain(f"ckpt='{run_dir}'", f"split={split}", "data.num_workers=0", name="evaluate")
    evaluate(Run(config=config, dir=out))
    scores: dict[str, Any] = json.loads((out / "scores.json").read_text())
    return scores


@pytest.mark.parametrize(
    ("precision", "overrides"),
    [
        ("bf16-mixed", ()),
        ("bf16-mixed", ("trainer.val_precision=32",)),
        ("bf16-mixed", ("callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=min")),
        ("bf16-mixed", ("+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging", "optimizer.lr=0.01")),
        ("bf16-mixed", ("trainer.limit_val_batches=1", "trainer.limit_test_batches=1.0")),
        ("bf16-true", ()),
        ("32-true", ("callbacks.checkpoint.monitor=train/loss", "callbacks.checkpoint.mode=min")),
    ],
    ids=str,
)
def test_final_scores_are_those_of_evaluate(
    precision: str, overrides: tuple[str, ...], train: Train, tmp_path: Path
) -> None:
    found = train(f"trainer.precision={precision}", "trainer.max_epochs=3", *overrides, without=[PRECISION])
    run_dir = tmp_path / "run"
    record, saved = RunRecord(run_dir).read(), load_file(run_dir / BEST)
    scores, best = record["scores"], record["best"]
    assert best == {name.removeprefix("best/"): value for name, value in scores.items() if name.startswith("best/")}
    assert (best["epoch"], best["step"]) == (saved["epoch"] + 1, saved["global_step"])
    assert found == best["top1"]
    splits = {"test": {name.removeprefix("test/"): value for name, value in scores.items()}, "val": best}
    for split, expected in splits.items():
        kept = read_predictions(run_dir, split)
        assert kept is not None and kept.probs is not None and len(kept) == len({*kept.paths}) == expected["count"]
        assert kept.correct.mean() == expected["top1"]
        assert -np.log(kept.label_prob).mean() == pytest.approx(expected["loss"], rel=1e-5)
        if "trainer.limit_val_batches=1" in overrides and split == "val":
            assert expected["count"] == 8  # of 11
            continue
        again = evaluated(run_dir, split)
        assert [again[name] for name in ("top1", "top5", "images")] == [
            expected[name] for name in ("top1", "top5", "count")
        ]
        found_rows = rows(run_dir / split / "predictions.csv")
        assert [row["path"] for row in found_rows] == [
            os.path.join(record["config"]["data"]["root"], path) for path in kept.paths
        ]
        assert [row["class1"] for row in found_rows] == kept.classes[kept.predicted].tolist()
        assert [float(row["prob1"]) for row in found_rows] == pytest.approx(kept.top_probs[:, 0].tolist(), abs=2e-4)
        # Weights that were bfloat16 in the training differ in the last bit of the loss.
        assert again["loss"] == pytest.approx(expected["loss"], rel=1e-6 if precision == "bf16-true" else 0, abs=0)


@pytest.mark.parametrize("val_precision", ["auto", "32"])
def test_validations_are_in_the_training_precision_and_the_best_is_scored_in_32_bits(
    val_precision: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation split has 2 batches: it is scored after each of 2 epochs, and once more at the end; test has one batch."""
    seen: list[tuple[bool, torch.dtype]] = []
    plain_logits = Classifier._logits

    def logits(module: Classifier, images: torch.Tensor) -> torch.Tensor:
        found = plain_logits(module, images)
        if not module.training:
            seen.append((module.trainer.testing, found.dtype))
        return found

    monkeypatch.setattr(Classifier, "_logits", logits)
    options = ("trainer.precision=bf16-mixed", f"trainer.val_precision={val_precision}", "trainer.max_epochs=2")
    train(*options, "logger=[csv,tensorboard]", without=[PRECISION])
    in_training = torch.bfloat16 if val_precision == "auto" else torch.float32
    assert seen[:4] == [(False, in_training)] * 4
    assert seen[4:] == [(True, torch.float32)] * 3

    best = RunRecord(tmp_path / "run").read()["best"]
    epochs = rows(tmp_path / "run/metrics.csv")
    assert [row["epoch"] for row in epochs] == ["1", "2"]
    measured = float(epochs[int(best["epoch"]) - 1]["val/loss"])
    assert measured == pytest.approx(best["loss"], rel=0.02)
    assert (measured == pytest.approx(best["loss"], rel=1e-6)) == (val_precision == "32")
    curves = scalars(tmp_path / "run")
    assert curves["best/top1"][-1] == pytest.approx(best["top1"])
    assert curves["val/loss"] == pytest.approx([float(row["val/loss"]) for row in epochs])


def test_a_limit_of_zero_batches_skips_the_test_split(train: Train, tmp_path: Path) -> None:
    train("trainer.limit_test_batches=0", "trainer.max_epochs=1")
    scores = RunRecord(tmp_path / "run").read()["scores"]
    assert scores and not [name for name in scores if name.startswith("test/")]
    assert read_predictions(tmp_path / "run", "val") is not None
    assert read_predictions(tmp_path / "run", "test") is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.val_precision=16"], "trainer.val_precision must be auto or 32; got 16"),
        (
            ["trainer.val_precision=32", "trainer.precision=bf16-true"],
            "trainer.val_precision=32 needs float32 weights, which trainer.precision=bf16-true does not keep; use",
        ),
    ],
)
def test_invalid_precisions_are_refused(overrides: list[str], message: str, images: Path) -> None:
    config = plain(*(override for override in TINY if override != PRECISION), f"data.root={images}", *overrides)
    with pytest.raises(ConfigError, match=message):
        check_objects(config, data_config(config).find_splits(), num_ranks=1)
