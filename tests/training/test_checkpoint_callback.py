import io
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from alexlab.errors import ConfigError, DiskError
from alexlab.records.atomic import write_atomic
from alexlab.records.record import RunRecord
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.checkpoint_io import AtomicCheckpointIO
from support.exact_resume import difference
from support.runs import rows

Train = Callable[..., float | None]


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_last_is_from_the_last_epoch_and_best_from_the_best_epoch(train: Train, tmp_path: Path) -> None:
    train("trainer.max_epochs=4", "optimizer.lr=0.003", "seed=5")
    ranks = [(float(row["val/top1"]), -float(row["val/loss"])) for row in rows(tmp_path / "run/metrics.csv")]
    best, last = (load(tmp_path / f"run/checkpoints/{name}.ckpt") for name in ("best", "last"))
    assert last["epoch"] == 3
    assert best["epoch"] == ranks.index(max(ranks)) > ranks.index(max(ranks, key=lambda rank: rank[0])), "a tie"
    found = best["alexlab"]["best"]
    assert found["top1"] == pytest.approx(max(ranks)[0]) and found["epoch"] == best["epoch"] + 1


@pytest.mark.parametrize("lr", [0.01, 0.0])
def test_a_longer_run_continues_from_the_raw_weights(train: Train, tmp_path: Path, lr: float) -> None:
    """Of EMA, whether or not the last epoch is the best one; its average would be another run."""
    options = ("callbacks=[default,ema]", "callbacks.ema.decay=0.5", "callbacks.checkpoint.every_n_epochs=2")
    options = (*options, f"optimizer.lr={lr}", "scheduler=constant", "optimizer=sgd")
    train(*options, "trainer.max_epochs=5", run_dir=tmp_path / "whole")
    train(*options, "trainer.max_epochs=3", run_dir=tmp_path / "part")
    train(*options, "trainer.max_epochs=5", run_dir=tmp_path / "part", resumed=True)
    whole, part = (load(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "part"))
    assert (whole["global_step"], whole["epoch"]) == (part["global_step"], part["epoch"])
    assert difference(whole["state_dict"], part["state_dict"]) is None


@pytest.mark.filterwarnings("ignore:The checkpoint was not created with WeightAveraging")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_may_end_or_begin_to_average_its_weights(train: Train, tmp_path: Path) -> None:
    """It continues from the raw weights; the average begins with the first step after the resume."""
    average, options = ("callbacks=[default,ema]", "callbacks.ema.decay=0.5"), ("optimizer=sgd", "optimizer.lr=0.01")
    train(*options, "trainer.max_epochs=3", run_dir=tmp_path / "whole")
    for name, before, after in (("ended", average, ()), ("begun", (), average)):
        train(*options, *before, "trainer.max_epochs=2", run_dir=tmp_path / name)
        train(*options, *after, "trainer.max_epochs=3", run_dir=tmp_path / name, resumed=True)
    whole, ended, begun = (load(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "ended", "begun"))
    assert difference(whole["state_dict"], ended["state_dict"]) is None
    assert difference(whole["state_dict"], begun["current_model_state"]) is None
    assert "current_model_state" not in ended and begun["averaging_state"]["n_averaged"] == 3


def test_the_last_epoch_is_saved_regardless_of_every_n_epochs(train: Train, tmp_path: Path) -> None:
    train("trainer.max_epochs=3", "callbacks.checkpoint.every_n_epochs=2", "optimizer.lr=0.0")
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 9


def test_equal_best_and_last_checkpoints_are_one_file(train: Train, tmp_path: Path) -> None:
    train()
    best, last = (os.stat(tmp_path / f"run/checkpoints/{name}.ckpt") for name in ("best", "last"))
    assert best.st_ino == last.st_ino


def test_validations_within_an_epoch_are_considered(train: Train, tmp_path: Path) -> None:
    """With a learning rate of 0 all validations are equal, and the first one stays the best."""
    train("trainer.val_check_interval=1", "optimizer.lr=0.0")
    assert load(tmp_path / "run/checkpoints/best.ckpt")["global_step"] == 1
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3


def test_invalid_arguments_are_rejected(train: Train) -> None:
    with pytest.raises(ConfigError, match="mode must be max or min; got 'maximum'"):
        train("callbacks.checkpoint.mode=maximum")
    with pytest.raises(ConfigError, match="every_n_epochs must be at least 1; got 0"):
        train("callbacks.checkpoint.every_n_epochs=0")
    with pytest.raises(ConfigError, match="on_error must be raise or warn; got 'ignore'"):
        train("callbacks.checkpoint.on_error=ignore")
    with pytest.raises(ValueError, match="every_n_steps must be at least 1; got 0"):
        CheckpointCallback(every_n_steps=0)
    with pytest.raises(ValueError, match="every_s must be positive; got 0"):
        CheckpointCallback(every_s=0)


def raise_disk_full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_state_that_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2), "b": (1, None, {"c": "d"})}, path)
    for value in (tmp_path, np.float64(1)):
        state = {"callbacks": {"Mine": {"kept": [1, value]}}}
        with pytest.raises(ConfigError, match=r"callbacks\.Mine\.kept\.1 must be a tensor or plain data"):
            AtomicCheckpointIO().save_checkpoint(state, path)
    assert torch.load(path, weights_only=True)["b"] == (1, None, {"c": "d"})


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(
        DiskError, match=r"cannot write .*/a.ckpt, 0.0 MB: No space left on device; [\d.]+ MB are free in .*kept$"
    ):
        write_atomic(path, b"new")
    assert load(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"cannot write .*file"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "a.ckpt")


def fill_disk(monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """Let the write of checkpoint number `at` fail."""
    count = 0
    fsync = os.fsync

    def fsync_until_full(descriptor: int) -> None:
        nonlocal count
        if ".ckpt." not in os.readlink(f"/proc/self/fd/{descriptor}"):
            return fsync(descriptor)
        count += 1
        return raise_disk_full(descriptor) if count == at else fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_until_full)


def test_a_full_disk_ends_the_run_and_keeps_earlier_checkpoints(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, at=3)
    with pytest.raises(DiskError, match=r"best.ckpt, .* MB: No space left on device"):
        train("trainer.max_epochs=5", "callbacks.checkpoint.every_n_steps=1")
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 2
    record = RunRecord(tmp_path / "run").read()
    assert record["status"] == "failed" and "No space left on device" in record["reason"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_can_continue_on_a_full_disk(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    """The last epoch is saved at the end, and `best.ckpt` is from the best epoch that could be saved."""
    fill_disk(monkeypatch, at=at)
    train("trainer.max_epochs=4", "callbacks.checkpoint.on_error=warn", "seed=5")
    assert "No space left on device" in caplog.text and "the run continues" in caplog.text
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 12
    ranks = [(float(row["val/top1"]), -float(row["val/loss"])) for row in rows(tmp_path / "run/metrics.csv")]
    saved = {
        epoch: rank for epoch, rank in enumerate(ranks) if epoch != at - 1
    }  # one write per epoch before the failure
    assert load(tmp_path / "run/checkpoints/best.ckpt")["epoch"] == max(saved, key=lambda epoch: saved[epoch])
    assert RunRecord(tmp_path / "run").read()["status"] == "finished"


def test_temporary_files_of_a_killed_process_are_removed(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    partial = tmp_path / "run/checkpoints/.last.ckpt.4711"
    partial.write_bytes(b"half of it")
    train()
    assert not partial.exists()
    assert {path.name for path in partial.parent.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_an_earlier_checkpoint_replaces_a_corrupt_last_one(
    train: Callable[..., float | None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    overrides = ("trainer.max_epochs=3", "callbacks.checkpoint.keep_last=2", "callbacks.checkpoint.every_n_steps=2")
    train(*overrides)
    folder = tmp_path / "run/checkpoints"
    assert {path.name for path in folder.iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "step_00000008.ckpt",
        "step_00000009.ckpt",
    }
    assert (folder / "last.ckpt").samefile(folder / "step_00000009.ckpt")
    content = (folder / "last.ckpt").read_bytes()
    for path in (folder / "last.ckpt", folder / "step_00000009.ckpt"):
        path.write_bytes(content[: len(content) // 2])
    train(*overrides, resumed=True)
    assert "resuming from step_00000008.ckpt, step 8" in caplog.text
    one, other = torch.load(io.BytesIO(content), weights_only=True), torch.load(folder / "last.ckpt", weights_only=True)
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    for path in folder.glob("*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot resume from any checkpoint"):
        train(*overrides, resumed=True)


def test_averaged_weights_are_not_saved_as_those_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end EMA has replaced the weights, so a checkpoint that could not be written then is not retried."""
    saved: list[int] = []
    callback = CheckpointCallback(monitor="val/top1")
    monkeypatch.setattr(callback, "_save_last", lambda trainer, equals_best: saved.append(trainer.global_step))
    for callbacks in ([], [EMAWeightAveraging()]):
        callback.on_train_end(SimpleNamespace(global_step=5, callbacks=callbacks), None)  # type: ignore[arg-type]
    assert saved == [5]
