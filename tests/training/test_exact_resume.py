"""Resuming from every checkpoint of a run: all later checkpoints are equal to those of the uninterrupted run.

The comparison includes loop counters and callbacks. A second resume then starts from the same content as the uninterrupted
run, so repeated resumes are covered by induction.
"""

import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Timer

from alexlab.data.discovery import find_splits
from alexlab.data.streaming.writer import write_shards
from alexlab.distributed import hardware
from alexlab.distributed.signals import Interrupted
from alexlab.records.layout import LAST
from alexlab.records.safe_load import load_file
from alexlab.tasks import rank
from alexlab.training.checkpoint_io import position
from alexlab.training.module import Classifier
from support.exact_resume import EPOCHS, RECIPES, STEPS, RecordedRun, Train, compare, content, difference
from support.runs import rows

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("recipe", RECIPES)
def test_resuming_from_every_checkpoint_is_exact(train: Train, images: Path, tmp_path: Path, recipe: str) -> None:
    run, overrides = RecordedRun(train, tmp_path), RECIPES[recipe]
    if "shards" in recipe:
        shards = tmp_path / "shards"
        splits = find_splits(str(images), val_fraction=0.2, test_fraction=0.0)
        write_shards(splits, str(shards), shard_bytes=60_000, cache_dir=tmp_path)
        overrides = tuple(override.format(shards=shards) for override in overrides)
    whole = run(*overrides, name="whole")
    points = sorted(whole.iterdir())
    assert len(points) == EPOCHS * (3 if recipe == "overfit three batches" else STEPS), "every step was saved"
    compared = 0
    for point in points:
        resumed = run(*overrides, name=f"from_{point.stem}", begin=point)
        compared += compare(whole, resumed, point.name)
        if point == points[-1]:  # nothing was left to train
            break
        last = [rows(tmp_path / name / "metrics.csv")[-1] for name in ("whole", f"from_{point.stem}")]
        for row in last:
            del row["train/images_per_s"]
        assert last[0] == last[1]
    assert compared == len(points) * (len(points) - 1) // 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than the machine has cores
def test_the_number_of_workers_does_not_change_the_weights(train: Train, tmp_path: Path) -> None:
    run = RecordedRun(train, tmp_path)
    whole = run("augmentation=inception", name="whole")
    for workers in (1, 2, 4):
        overrides = ("augmentation=inception", f"data.num_workers={workers}")
        resumed = run(*overrides, name=f"workers{workers}", begin=whole / "004.ckpt")
        for path in resumed.iterdir():
            one, other = content(whole / path.name), content(path)
            assert difference(one["state_dict"], other["state_dict"]) is None
            assert difference(one["optimizer_states"], other["optimizer_states"]) is None


@pytest.mark.parametrize("overrides", [(), ("trainer.accumulate_grad_batches=2",)])
def test_resuming_on_two_ranks_is_exact(train: Train, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    run = RecordedRun(train, tmp_path)
    overrides = (*overrides, "trainer.devices=2", "augmentation=mixup", "scheduler=cosine")
    whole = run(*overrides, name="whole")
    points = sorted(whole.iterdir())
    for point in points[:-1]:
        compare(whole, run(*overrides, name=f"from_{point.stem}", begin=point), point.name)


def test_resuming_on_three_ranks_is_exact_if_ddp_keeps_its_buckets(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default DDP changes its buckets after the first step, and the order in which Gloo sums depends on them."""
    monkeypatch.setattr(hardware, "num_cores", lambda: 3)
    run = RecordedRun(train, tmp_path)
    overrides = ("trainer.devices=3", "data.batch_size=6", "trainer.find_unused_parameters=true")
    whole = run(*overrides, name="whole")
    compare(whole, run(*overrides, name="resumed", begin=whole / "003.ckpt"), "003.ckpt")


def test_a_run_on_two_ranks_can_resume_on_one(train: Train, tmp_path: Path) -> None:
    """Not bit for bit, but every image is counted once."""
    run = RecordedRun(train, tmp_path)
    whole = run("trainer.devices=2", "model.dropout=0", name="two")
    one = run("trainer.devices=1", "model.dropout=0", name="one", begin=whole / "002.ckpt")
    assert (one / "012.ckpt").is_file()
    first = [rows(tmp_path / name / "metrics.csv")[0] for name in ("two", "one")]
    assert float(first[0]["train/loss"]) == pytest.approx(float(first[1]["train/loss"]), rel=1e-4)


@pytest.mark.parametrize(
    ("accumulated", "limits"),
    [
        *(((1, 2), ()), ((2, 1), ()), ((2, 4), ())),
        ((1, 2), ("trainer.limit_train_batches=2", "trainer.val_check_interval=1")),
        ((1, 2), ("trainer.limit_train_batches=0.7", "trainer.val_check_interval=0.5")),
        ((2, 4), ("trainer.overfit_batches=2",)),
    ],
)
def test_resuming_with_other_accumulation_steps_keeps_the_global_batches(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulated: tuple[int, int], limits: tuple[str, ...]
) -> None:
    """As after the loss of a node within an epoch: steps, images and metrics match an uninterrupted run."""
    overrides = ("trainer.max_epochs=3", "optimizer=sgd", "model.dropout=0", "callbacks.checkpoint.every_n_steps=1")
    overrides, num_steps = (*overrides, *limits), 2 if limits else 3
    train(*overrides, run_dir=tmp_path / "whole")
    original = Classifier.training_step

    def interrupt(module: Classifier, batch: Any, batch_idx: int) -> Any:
        if module.global_step == num_steps + 1:
            raise Interrupted(signal.SIGTERM)
        return original(module, batch, batch_idx)

    before, after = accumulated
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", interrupt)
        patch.setattr(rank, "accumulation_steps", lambda config, num_ranks: before)
        with pytest.raises(Interrupted):
            train(*overrides, run_dir=tmp_path / "part")
    monkeypatch.setattr(rank, "accumulation_steps", lambda config, num_ranks: after)
    train(*overrides, run_dir=tmp_path / "part", resumed=True)
    for one, two in zip(rows(tmp_path / "whole/metrics.csv"), rows(tmp_path / "part/metrics.csv"), strict=True):
        assert one["val/top1"] == two["val/top1"]
        for name in ("train/loss", "val/loss"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-5)
    last = load_file(tmp_path / "part" / LAST)
    assert last["global_step"] == 3 * num_steps
    assert position(last) == (3, 0)


@pytest.mark.parametrize("limit", ["trainer.max_steps=8", "trainer.max_time=00:00:00:01"])
@pytest.mark.parametrize(
    "schedule",
    [
        ("scheduler=any", "scheduler._target_=torch.optim.lr_scheduler.StepLR", "+scheduler.step_size=1"),
        ("scheduler=plateau", "scheduler.monitor=train/loss", "scheduler.mode=min", "scheduler.patience=0"),
        ("trainer.val_check_interval=2",),
    ],
    ids=["by epoch", "by training loss", "at a validation"],
)
def test_an_epoch_that_a_limit_cut_short_is_completed(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, schedule: tuple[str, ...]
) -> None:
    """The extended run equals one that had the longer limit from the start."""
    common = ("data.batch_size=4", "trainer.max_epochs=3", "optimizer=sgd", *schedule)
    train(*common, run_dir=tmp_path / "whole")
    if "max_time" in limit:  # Lightning's timer stops the run after its eighth batch
        monkeypatch.setattr(Timer, "time_remaining", lambda self, stage=None: 1.0)
        original = Classifier.on_train_batch_end

        def stop(module: Classifier, *args: Any) -> None:
            original(module, *args)
            module.trainer.should_stop = module.global_step == 8

        with monkeypatch.context() as patch:
            patch.setattr(Classifier, "on_train_batch_end", stop)
            train(*common, limit, run_dir=tmp_path / "part")
    else:
        train(*common, limit, run_dir=tmp_path / "part")
    assert position(load_file(tmp_path / "part" / LAST)) == (2, 0), "as Lightning counts it"
    longer = limit.replace("=8", "=-1").replace(":01", ":59")
    train(*common, longer, run_dir=tmp_path / "part", resumed=True)
    whole, part = (load_file(tmp_path / name / LAST) for name in ("whole", "part"))
    assert difference(whole["state_dict"], part["state_dict"]) is None
    tables = [rows(tmp_path / name / "metrics.csv") for name in ("whole", "part")]
    for row in (*tables[0], *tables[1]):
        del row["train/images_per_s"]
    assert tables[0] == tables[1]


def test_a_validation_that_is_only_due_at_a_stop_does_not_count_in_a_longer_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for plateau, which would reduce the rate earlier, nor for early stopping, nor in the row of the epoch."""
    # The first validation is the best. Of six batches in an epoch, the fourth one is validated, and the run stops after the fifth.
    plateau = ("scheduler=plateau", "scheduler.patience=1", "scheduler.threshold=1.0", "optimizer=sgd")
    stops = ("callbacks=[default,early_stopping]", "callbacks.early_stopping.min_delta=1.0")
    common = ("data.batch_size=4", "trainer.max_epochs=3", "trainer.val_check_interval=0.7", *plateau, *stops)
    stop_at = 0
    with monkeypatch.context() as patch:
        patch.setattr(Timer, "time_elapsed", lambda *_: 60.0 if stop_at else 0.0)
        original = Classifier.training_step

        def count(module: Classifier, batch: Any, batch_idx: int) -> Any:
            nonlocal stop_at
            stop_at = stop_at or (module.global_step == 10)
            return original(module, batch, batch_idx)

        patch.setattr(Classifier, "training_step", count)
        train(*common, "trainer.max_time=00:00:00:59", run_dir=tmp_path / "part")
    assert load_file(tmp_path / "part" / LAST)["global_step"] == 11
    train(*common, "trainer.max_time=00:01:00:00", run_dir=tmp_path / "part", resumed=True)
    train(*common, "trainer.max_time=00:01:00:00", run_dir=tmp_path / "whole")
    whole, part = (content(tmp_path / name / LAST) for name in ("whole", "part"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert difference(whole[key], part[key]) is None
    for state in (whole, part):
        (counts,) = (found for name, found in state["callbacks"].items() if name.startswith("EarlyStopping"))
        assert counts["wait_count"] == 2
    scores = [[row["val/loss"] for row in rows(tmp_path / name / "metrics.csv")] for name in ("whole", "part")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("end", ["max_time", "crash"])
def test_validations_and_stops_wait_for_the_end_of_the_optimizer_step(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A run that was stopped between two accumulated batches, or has only a best checkpoint, resumes exactly."""
    # In each epoch the third of six batches is validated: within the second of three steps.
    common = (
        "trainer.accumulate_grad_batches=2",
        "trainer.val_check_interval=3",
        "trainer.max_epochs=2",
        "optimizer=sgd",
    )
    train(*common, run_dir=tmp_path / "whole")
    original = Classifier.on_train_batch_end

    def stop(module: Classifier, outputs: Any, batch: Any, batch_idx: int) -> None:
        original(module, outputs, batch, batch_idx)
        if end == "crash" and batch_idx == 4:
            raise RuntimeError("out of memory")
        module.trainer.should_stop |= end == "max_time" and (module.current_epoch, batch_idx) == (1, 0)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_end", stop)
        with pytest.raises(RuntimeError) if end == "crash" else nullcontext():
            train(*common, run_dir=tmp_path / "part")
    checkpoints = tmp_path / "part/checkpoints"
    name, step = ("best.ckpt", 2) if end == "crash" else ("last.ckpt", 4)
    assert load_file(checkpoints / name)["global_step"] == step and (
        end != "crash" or not (checkpoints / "last.ckpt").exists()
    )
    train(*common, run_dir=tmp_path / "part", resumed=True)
    whole, part = (load_file(tmp_path / run / LAST) for run in ("whole", "part"))
    for key in ("state_dict", "optimizer_states"):
        assert difference(whole[key], part[key]) is None
    tables = [rows(tmp_path / run / "metrics.csv") for run in ("whole", "part")]
    for row in (*tables[0], *tables[1]):
        del row["train/images_per_s"]
    assert tables[0] == tables[1]


def test_every_s_saves_on_all_ranks_by_one_clock(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that advances a second per call, about every third step is saved, by both ranks together."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    run = RecordedRun(train, tmp_path)
    kept = run(
        "callbacks.checkpoint.every_n_steps=null", "callbacks.checkpoint.every_s=3", "trainer.devices=2", name="whole"
    )
    steps = [int(path.stem) for path in sorted(kept.iterdir())]
    assert {6, 12} < set(steps) and 3 < len(steps) < 12
