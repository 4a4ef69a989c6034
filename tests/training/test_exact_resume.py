"""Every point where a run can have been saved, resumed: all that is saved after it is what the uninterrupted run saved.

The whole checkpoints are compared, loop counters and callbacks included, at every later point: a second resume then begins
from the same bytes as one of the uninterrupted run, so that it is covered by induction.
"""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from alexlab.config import build
from alexlab.data.discovery import find_splits
from alexlab.data.streaming.writer import write_shards
from alexlab.distributed.signals import Interrupted
from alexlab.runs.layout import LAST
from alexlab.runs.safe_load import load_file
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.checkpoint_io import position
from alexlab.training.module import Classifier
from support.exact_resume import EPOCHS, RECIPES, STEPS, Recorded, Train, compare, content, difference
from support.runs import rows


@pytest.mark.parametrize("recipe", RECIPES)
def test_from_every_point_the_run_goes_on_as_it_would_have(
    train: Train, images: Path, tmp_path: Path, recipe: str
) -> None:
    run, words = Recorded(train, tmp_path), RECIPES[recipe]
    if "shards" in recipe:
        shards = tmp_path / "shards"
        splits = find_splits(str(images), val_fraction=0.2, test_fraction=0.0)
        write_shards(splits, str(shards), shard_bytes=60_000, cache_dir=tmp_path)
        words = tuple(word.format(shards=shards) for word in words)
    whole = run(*words, name="whole")
    points = sorted(whole.iterdir())
    assert len(points) == EPOCHS * (3 if recipe == "three batches by heart" else STEPS), "every step was saved"
    compared = 0
    for point in points[:-1]:
        resumed = run(*words, name=f"from_{point.stem}", begin=point)
        compared += compare(whole, resumed, point.name)
        last = [rows(tmp_path / name / "metrics.csv")[-1] for name in ("whole", f"from_{point.stem}")]
        for row in last:
            del row["train/images_per_s"]
        assert last[0] == last[1]
    assert compared == len(points) * (len(points) - 1) // 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than there are cores
def test_another_number_of_workers_changes_nothing(train: Train, tmp_path: Path) -> None:
    run = Recorded(train, tmp_path)
    whole = run("augmentation=inception", name="whole")
    for workers in (1, 2, 4):
        words = ("augmentation=inception", f"data.num_workers={workers}")
        resumed = run(*words, name=f"workers{workers}", begin=whole / "004.ckpt")
        for path in resumed.iterdir():
            one, other = content(whole / path.name), content(path)
            assert difference(one["state_dict"], other["state_dict"]) is None
            assert difference(one["optimizer_states"], other["optimizer_states"]) is None


@pytest.mark.parametrize("words", [(), ("trainer.accumulate_grad_batches=2",)])
def test_two_ranks_too(train: Train, tmp_path: Path, words: tuple[str, ...]) -> None:
    run = Recorded(train, tmp_path)
    words = (*words, "trainer.devices=2", "augmentation=mixup", "scheduler=cosine")
    whole = run(*words, name="whole")
    points = sorted(whole.iterdir())
    for point in points[:-1]:
        compare(whole, run(*words, name=f"from_{point.stem}", begin=point), point.name)


def test_a_run_on_two_ranks_goes_on_with_one(train: Train, tmp_path: Path) -> None:
    """Not bit for bit; but every image is counted once."""
    run = Recorded(train, tmp_path)
    whole = run("trainer.devices=2", "model.dropout=0", name="two")
    one = run("trainer.devices=1", "model.dropout=0", name="one", begin=whole / "002.ckpt")
    assert (one / "012.ckpt").is_file()
    first = [rows(tmp_path / name / "metrics.csv")[0] for name in ("two", "one")]
    assert float(first[0]["train/loss"]) == pytest.approx(float(first[1]["train/loss"]), rel=1e-4)


@pytest.mark.parametrize("accumulated", [(1, 2), (2, 1), (2, 4)])
def test_fewer_ranks_add_up_more_batches(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulated: tuple[int, int]
) -> None:
    """Ended inside an epoch, and gone on with another number of batches in a step, as after the loss of a node: the steps,
    their images and every score are those of one run."""
    words = ("trainer.max_epochs=3", "optimizer=sgd", "model.dropout=0", "callbacks.checkpoint.every_n_steps=1")
    train(*words, run_dir=tmp_path / "whole")
    own = Classifier.training_step

    def ended(module: Classifier, batch: Any, batch_idx: int) -> Any:
        if module.global_step == 4:
            raise Interrupted(signal.SIGTERM)
        return own(module, batch, batch_idx)

    before, after = accumulated
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", ended)
        patch.setattr(build, "accumulation", lambda config, num_ranks: before)
        with pytest.raises(Interrupted):
            train(*words, run_dir=tmp_path / "part")
    monkeypatch.setattr(build, "accumulation", lambda config, num_ranks: after)
    train(*words, run_dir=tmp_path / "part", resumed=True)
    for one, two in zip(rows(tmp_path / "whole/metrics.csv"), rows(tmp_path / "part/metrics.csv"), strict=True):
        assert one["val/top1"] == two["val/top1"]
        for name in ("train/loss", "val/loss"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-5)
    last = load_file(tmp_path / "part" / LAST)
    assert last["global_step"] == 9
    assert position(last) == (3, 0)


def test_by_the_clock(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second at each look: a checkpoint at every third step or so, in one file on two ranks."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    run = Recorded(train, tmp_path)
    kept = run(
        "callbacks.checkpoint.every_n_steps=null", "callbacks.checkpoint.every_s=3", "trainer.devices=2", name="whole"
    )
    steps = [int(path.stem) for path in sorted(kept.iterdir())]
    assert {6, 12} < set(steps) and 3 < len(steps) < 12


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1; got 0"),
        ({"every_s": 0}, "every_s must be positive; got 0"),
    ],
)
def test_words(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CheckpointCallback(**keywords)
