import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alexlab.errors import ConfigError, DiskError
from alexlab.runs.atomic import write_atomic
from alexlab.runs.record import RunRecord
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.checkpoint_io import AtomicCheckpointIO
from support.runs import rows

Train = Callable[..., float | None]


def loaded(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_the_last_checkpoint_is_of_the_last_epoch_and_the_best_of_the_best(train: Train, tmp_path: Path) -> None:
    train("trainer.max_epochs=4", "optimizer.lr=0.003", "seed=5")
    scores = [float(row["val/top1"]) for row in rows(tmp_path / "run/metrics.csv")]
    best, last = (loaded(tmp_path / f"run/checkpoints/{name}.ckpt") for name in ("best", "last"))
    assert last["epoch"] == 3
    assert best["epoch"] == scores.index(max(scores)), "of equally good epochs the first"
    assert best["alexlab"]["best"]["top1"] == pytest.approx(max(scores))


def test_every_n_epochs_leaves_no_gap_at_the_end(train: Train, tmp_path: Path) -> None:
    train("trainer.max_epochs=3", "callbacks.checkpoint.every_n_epochs=2")
    assert loaded(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 9


def test_an_equal_last_checkpoint_is_not_written_twice(train: Train, tmp_path: Path) -> None:
    train()
    best, last = (os.stat(tmp_path / f"run/checkpoints/{name}.ckpt") for name in ("best", "last"))
    assert best.st_ino == last.st_ino


def test_validations_inside_an_epoch_are_looked_at(train: Train, tmp_path: Path) -> None:
    """With a rate of 0 all of them are equal, and the first stays the best."""
    train("trainer.val_check_interval=1", "optimizer.lr=0.0")
    assert loaded(tmp_path / "run/checkpoints/best.ckpt")["global_step"] == 1
    assert loaded(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3


def test_what_the_callback_does_not_take(train: Train) -> None:
    with pytest.raises(ConfigError, match="mode must be max or min; got 'maximum'"):
        train("callbacks.checkpoint.mode=maximum")
    with pytest.raises(ConfigError, match="every_n_epochs must be at least 1; got 0"):
        train("callbacks.checkpoint.every_n_epochs=0")
    assert CheckpointCallback().monitor == "val/top1"


def full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DiskError, match=r"cannot write .*/a.ckpt, 0.0 MB: No space left on device; [\d.]+ MB are free in .*kept$"
    ):
        write_atomic(path, b"new")
    assert loaded(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"cannot write .*file"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "a.ckpt")


def filling(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The disk is full when so many checkpoints have been written, for one checkpoint."""
    count = 0
    fsync = os.fsync

    def sometimes(descriptor: int) -> None:
        nonlocal count
        if ".ckpt." not in os.readlink(f"/proc/self/fd/{descriptor}"):
            return fsync(descriptor)
        count += 1
        return full(descriptor) if count == at else fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sometimes)


def test_a_full_disk_ends_the_run_and_keeps_what_there_is(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filling(monkeypatch, at=3)
    with pytest.raises(DiskError, match=r"best.ckpt, .* MB: No space left on device"):
        train("trainer.max_epochs=5", "callbacks.checkpoint.every_n_steps=1")
    kept = loaded(tmp_path / "run/checkpoints/last.ckpt")
    assert kept["global_step"] == 2
    card = RunRecord(tmp_path / "run").read()
    assert card["status"] == "failed" and "No space left on device" in card["reason"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_or_it_goes_on(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    """Whichever checkpoint fails, the last epoch has one at the end, and the best one is one that is there."""
    filling(monkeypatch, at=at)
    assert train("trainer.max_epochs=4", "callbacks.checkpoint.on_error=warn", "seed=5") is not None
    assert "No space left on device" in caplog.text and "the run goes on" in caplog.text
    assert loaded(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 12
    scores = [float(row["val/top1"]) for row in rows(tmp_path / "run/metrics.csv")]
    best = loaded(tmp_path / "run/checkpoints/best.ckpt")
    assert scores[best["epoch"]] == pytest.approx(best["alexlab"]["best"]["top1"]) or at == 1
    assert RunRecord(tmp_path / "run").read()["status"] == "finished"


def test_what_a_killed_writer_has_left_is_swept(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    left = tmp_path / "run/checkpoints/.last.ckpt.4711"
    left.write_bytes(b"half of it")
    train()
    assert not left.exists()
    assert {path.name for path in left.parent.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_words_of_the_policy(train: Train) -> None:
    with pytest.raises(ConfigError, match="on_error must be raise or warn; got 'ignore'"):
        train("callbacks.checkpoint.on_error=ignore")


def test_the_last_ones_are_kept_and_one_of_them_takes_the_place_of_a_damaged_one(
    train: Callable[..., float | None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    words = ("trainer.max_epochs=3", "callbacks.checkpoint.keep_last=2", "callbacks.checkpoint.every_n_steps=2")
    train(*words)
    folder = tmp_path / "run/checkpoints"
    assert {path.name for path in folder.iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "step_00000008.ckpt",
        "step_00000009.ckpt",
    }
    assert (folder / "last.ckpt").samefile(folder / "step_00000009.ckpt")
    whole = (folder / "last.ckpt").read_bytes()
    for path in (folder / "last.ckpt", folder / "step_00000009.ckpt"):
        path.write_bytes(whole[: len(whole) // 2])
    train(*words, resumed=True)
    assert "resuming from step_00000008.ckpt, step 8" in caplog.text and "step 8" in caplog.text
    one, other = torch.load(io.BytesIO(whole), weights_only=True), torch.load(folder / "last.ckpt", weights_only=True)
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    for path in folder.glob("*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot resume from any checkpoint"):
        train(*words, resumed=True)
