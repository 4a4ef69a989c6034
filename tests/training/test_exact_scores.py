"""Metrics do not depend on the number of ranks: splits of 1 to 17 images on 1, 2 and 3 ranks."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest

from alexlab.config import build, build_data
from alexlab.config.data import data_config
from alexlab.config.trainer import build_trainer
from alexlab.data.splits import Splits
from alexlab.distributed.launch import Limits, launch
from alexlab.errors import DataError
from alexlab.training.console import quiet_lightning
from alexlab.training.module import Classifier
from support.images import write_images
from support.runs import TINY, plain

pytestmark = pytest.mark.slow

SIZES = range(1, 18)
LIMITS = Limits(timeout_s=60.0, shutdown_s=2)


@pytest.fixture(scope="module")
def images17(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train/ant": 8, "train/bee": 8, "train/cat": 8, "val/ant": 7, "val/bee": 6, "val/cat": 4}
    return write_images(tmp_path_factory.mktemp("images17"), counts)


def first_images(splits: Splits, size: int) -> Splits:
    """Reduce the validation split to its first images in a mixed order."""
    order = [(index * 5) % 17 for index in range(size)]
    val = splits.val
    chosen = replace(val, paths=[val.paths[index] for index in order], labels=[val.labels[index] for index in order])
    return replace(splits, val=chosen)


def validate(root: Path, folder: Path, num_ranks: int, size: int) -> dict[str, float]:
    """Return the logged metrics of a validation, and the number of images that it counted."""
    config = plain(*TINY, f"data.root={root}", f"data.cache_dir={folder / 'cache'}", "data.batch_size=6")
    config["callbacks"], config["logger"] = {}, {}
    config["elastic"]["timeout_s"] = 60.0
    lightning.seed_everything(1, verbose=False)
    splits = first_images(data_config(config).find_splits(), size)
    module: Classifier = build.classifier(config, splits)
    trainer = build_trainer(
        {**config, "trainer": {**config["trainer"], "devices": num_ranks}}, folder, num_ranks=num_ranks
    )
    trainer.validate(module, datamodule=build_data.datamodule(config, splits), verbose=False)
    found = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return {**found, "count": module.scored["count"]}


@pytest.fixture(scope="module")
def found(images17: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[int, dict[str, float]]]:
    """Return metrics by number of ranks and of images."""
    quiet_lightning()
    folder = tmp_path_factory.mktemp("scores")

    def all_sizes(num_ranks: int) -> dict[int, dict[str, float]]:
        def task() -> dict[int, dict[str, float]]:
            return {size: validate(images17, folder, num_ranks, size) for size in SIZES}

        scores: dict[int, dict[str, float]] = launch(task, num_ranks=num_ranks, isolated=True, limits=LIMITS)
        return scores

    return {num_ranks: all_sizes(num_ranks) for num_ranks in (1, 2, 3)}


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.scenario(name="exact_scores")
def test_metrics_are_those_of_one_process(found: dict[int, Any], size: int, num_ranks: int) -> None:
    one, other = found[1][size], found[num_ranks][size]
    assert one["count"] == size
    for name in ("val/top1", "val/top5", "count"):
        assert other[name] == one[name], name
    # The sum is in float64, but the last bits of an image's loss depend on the size of its batch.
    assert other["val/loss"] == pytest.approx(one["val/loss"], abs=1e-6)


def test_accuracies_of_different_sizes_differ(found: dict[int, Any]) -> None:
    assert len({found[1][size]["val/top1"] for size in SIZES}) > 5


def test_a_missing_image_is_an_error(images17: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexlab.data.samplers import EvalBatchSampler

    original = EvalBatchSampler.__iter__
    monkeypatch.setattr(
        EvalBatchSampler, "__iter__", lambda self: iter([batch[:-1] or batch for batch in original(self)])
    )
    with pytest.raises(DataError, match=r"every image of the val split must be scored once; 6 of 7 were"):
        validate(images17, tmp_path, 1, 7)
    assert "RANK" not in os.environ
