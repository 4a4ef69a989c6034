import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alexlab.checkpoints import Checkpoints, DurableIO, write_durably
from alexlab.errors import ConfigError
from conftest import rows

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


def test_every_epochs_leaves_no_gap_at_the_end(train: Train, tmp_path: Path) -> None:
    train("trainer.max_epochs=3", "callbacks.checkpoint.every_epochs=2")
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
    with pytest.raises(ConfigError, match="every_epochs must be at least 1; got 0"):
        train("callbacks.checkpoint.every_epochs=0")
    assert Checkpoints().monitor == "val/top1"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    DurableIO().save_checkpoint({"a": 1}, path)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"new")
    assert loaded(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        DurableIO().save_checkpoint({}, tmp_path / "file" / "a.ckpt")
