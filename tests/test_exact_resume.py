"""Every point where a run can have been saved, resumed: all that is saved after it is what the uninterrupted run saved.

The whole checkpoints are compared, loop counters and callbacks included, at every later point: a second resume then begins
from the same bytes as one of the uninterrupted run, so that it is covered by induction.
"""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alexlab import build, checkpoints
from alexlab.classifier import Classifier
from alexlab.data.folder import find_splits
from alexlab.data.sharding import write_shards
from alexlab.load import load_file
from alexlab.runs import LAST
from alexlab.signals import Stopped
from conftest import rows

Train = Callable[..., float | None]

EPOCHS, STEPS = 2, 6  # of an epoch: 24 images in batches of 4
BASE = (
    "data.batch_size=4",
    f"trainer.max_epochs={EPOCHS}",
    "callbacks.checkpoint.every_steps=1",
    "callbacks.epochs.curves=false",
)
RECIPES = {
    "mixup": ("scheduler=cosine", "augmentation=mixup", "optimizer=sgd"),
    "accumulated": ("trainer.accumulate_grad_batches=2", "scheduler=cosine", "optimizer=sgd"),
    "ema and norms": ("callbacks=[default,ema]", "model.norm=batch", "callbacks.ema.decay=0.9"),
    "warm-up and plateau": (
        "scheduler=plateau",
        "scheduler.patience=0",
        "scheduler.warmup_epochs=1",
        "scheduler.factor=0.5",
    ),
    "validation inside": ("trainer.val_check_interval=0.5", "scheduler=plateau", "scheduler.patience=0"),
    "validation inside, accumulated": ("trainer.val_check_interval=0.5", "trainer.accumulate_grad_batches=2"),
    "packed, two workers": ("data.cache=packed", "data.num_workers=2", "scheduler=one_cycle"),
    "three batches by heart": ("trainer.overfit_batches=3", "optimizer=sgd"),
    "shards, two workers": (
        *("data.root=null", "+data.url={shards}", "+data.stream={{mix: 2, ahead: 1}}", "data.num_workers=2"),
        "scheduler=cosine",
    ),
    "balanced": ("data.sampler=balanced", "callbacks=[default,early_stopping]"),
}


class Recorded:
    """Keeps every `last.ckpt` of a run: `<step>.ckpt`, in the order in which they were written."""

    def __init__(self, train: Train, folder: Path) -> None:
        self.train, self.folder = train, folder

    def __call__(self, *overrides: str, name: str, begin: Path | None = None) -> Path:
        """Runs, from a checkpoint where one is given, and gives the folder of what was saved."""
        kept = self.folder / f"{name}_kept"
        kept.mkdir()
        run_dir = self.folder / name
        (run_dir / "checkpoints").mkdir(parents=True)
        if begin is not None:
            shutil.copy(begin, run_dir / "checkpoints/last.ckpt")
            first = self.folder / begin.parent.name.removesuffix("_kept") / "checkpoints"
            best = (begin.parent if begin.name == "last.ckpt" else first) / "best.ckpt"
            if best.exists():
                shutil.copy(best, run_dir / "checkpoints/best.ckpt")
        write, link = checkpoints.write_durably, checkpoints._link

        def keep(path: Path) -> None:
            if path.name == "last.ckpt":
                step = torch.load(path, weights_only=True)["global_step"]
                shutil.copy(path, kept / f"{step:03d}.ckpt")

        def recorded_write(path: Path, content: Any, **size: int) -> None:
            write(path, content, **size)
            keep(path)

        def recorded_link(source: Path, target: Path) -> None:
            link(source, target)
            keep(target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "write_durably", recorded_write)
            patch.setattr(checkpoints, "_link", recorded_link)
            self.train(*BASE, *overrides, run_dir=run_dir, resumed=begin is not None)
        return kept


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """The first place where two checkpoints differ, or None."""
    if isinstance(one, torch.Tensor):
        return None if torch.equal(one, other) else where
    if isinstance(one, dict):
        if list(one) != list(other):
            return f"{where}: {list(one)} and {list(other)}"
        return next(filter(None, (difference(one[key], other[key], f"{where}.{key}") for key in one)), None)
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return f"{where}: {len(one)} and {len(other)} entries"
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(a, b, f"{where}[{place}]") for place, (a, b) in pairs)), None)
    return None if one == other or one != one else f"{where}: {one!r} and {other!r}"


def content(path: Path) -> Any:
    """A checkpoint without the times that the epochs took."""
    found = torch.load(path, weights_only=True)
    for name, state in found["callbacks"].items():
        if name.startswith("EpochLog"):
            for row in state["rows"]:
                row.pop("images_per_s", None), row.pop("elapsed_s"), row.pop("train/images_per_s", None)
    return found


def compare(whole: Path, resumed: Path, begun: str) -> int:
    """Compares all that was saved after a point and gives the number of checkpoints."""
    later = [path.name for path in sorted(whole.iterdir()) if path.name > begun]
    assert sorted(path.name for path in resumed.iterdir()) == later, f"from {begun}"
    for name in later:
        assert difference(content(whole / name), content(resumed / name)) is None, f"{name}, resumed from {begun}"
    return len(later)


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
    words = ("trainer.max_epochs=3", "optimizer=sgd", "model.dropout=0", "callbacks.checkpoint.every_steps=1")
    train(*words, run_dir=tmp_path / "whole")
    own = Classifier.training_step

    def ended(module: Classifier, batch: Any, batch_idx: int) -> Any:
        if module.global_step == 4:
            raise Stopped(signal.SIGTERM)
        return own(module, batch, batch_idx)

    before, after = accumulated
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", ended)
        patch.setattr(build, "accumulation", lambda config, num_ranks: before)
        with pytest.raises(Stopped):
            train(*words, run_dir=tmp_path / "part")
    monkeypatch.setattr(build, "accumulation", lambda config, num_ranks: after)
    train(*words, run_dir=tmp_path / "part", resumed=True)
    for one, two in zip(rows(tmp_path / "whole/metrics.csv"), rows(tmp_path / "part/metrics.csv"), strict=True):
        assert one["val/top1"] == two["val/top1"]
        for name in ("train/loss", "val/loss"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-5)
    last = load_file(tmp_path / "part" / LAST)
    assert last["global_step"] == 9
    assert checkpoints.position(last) == (3, 0)


def test_by_the_clock(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second at each look: a checkpoint at every third step or so, in one file on two ranks."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: float(next(seconds)))
    run = Recorded(train, tmp_path)
    kept = run(
        "callbacks.checkpoint.every_steps=null", "callbacks.checkpoint.every_s=3", "trainer.devices=2", name="whole"
    )
    steps = [int(path.stem) for path in sorted(kept.iterdir())]
    assert {6, 12} < set(steps) and 3 < len(steps) < 12


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"every_steps": 0}, "every_steps must be at least 1; got 0"),
        ({"every_s": 0}, "every_s must be positive; got 0"),
    ],
)
def test_words(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        checkpoints.Checkpoints(**keywords)
