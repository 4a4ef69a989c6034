"""A failed rank is named with its cause, the others are terminated, and the run resumes if restarts are allowed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alexlab.errors import DataError, RankError
from alexlab.records.layout import LAST
from alexlab.records.record import RunRecord
from alexlab.training.module import Classifier
from support.exact_resume import content, difference
from support.runs import rows

pytestmark = pytest.mark.slow

Train = Callable[..., float | None]
TWO = ("trainer.devices=2", "trainer.max_epochs=2")


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Make one rank do something before one optimizer step, once."""

    def patch(act: Callable[[], None], *, rank: int = 1, step: int = 4) -> None:
        own, done = Classifier.training_step, tmp_path / "done"

        def acting(module: Classifier, batch: Any, batch_idx: int) -> Any:
            if (module.global_rank, module.global_step) == (rank, step) and not done.exists():
                done.touch()
                act()
            return own(module, batch, batch_idx)

        monkeypatch.setattr(Classifier, "training_step", acting)

    return patch


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("act", "message", "within_s"),
    [
        (kill, r"^rank 1 \(pid \d+\) was killed by SIGKILL; the other ranks were terminated$", 10),
        (fail, r"^rank 1 raised KeyError: 'a bug'; the other ranks were terminated$", 10),
        (stop, r"^rank 1 \(pid \d+\) is suspended \(SIGSTOP\); rank 0 timed out waiting for it, so all ranks were", 15),
    ],
)
def test_a_failed_rank_is_named(
    train: Train, tmp_path: Path, at_step: Callable[..., None], act: Callable[[], None], message: str, within_s: float
) -> None:
    at_step(act)
    start_s = time.monotonic()
    with pytest.raises(RankError, match=message):
        train(*TWO, "elastic.timeout_s=3", "elastic.shutdown_s=1")
    assert time.monotonic() - start_s < within_s
    found = RunRecord(tmp_path / "run").read()
    assert (found["status"], found["exit_code"]) == ("failed", 5)
    assert content(tmp_path / "run" / LAST)["global_step"] == 3, "the checkpoint of the first epoch is kept"


@pytest.mark.parametrize("act", [kill, fail])
@pytest.mark.parametrize("devices", [1, 2])
def test_restarted_ranks_train_like_uninterrupted_ones(
    train: Train,
    tmp_path: Path,
    at_step: Callable[..., None],
    act: Callable[[], None],
    devices: int,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    overrides = (f"trainer.devices={devices}", "trainer.max_epochs=2", "callbacks.checkpoint.every_n_steps=1")
    train(*overrides, run_dir=tmp_path / "whole", isolated=True)
    at_step(act, rank=devices - 1)
    train(*overrides, "elastic.max_restarts=2", run_dir=tmp_path / "lost")
    one, other = (content(tmp_path / name / LAST) for name in ("whole", "lost"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert difference(one[part], other[part]) is None
    found = RunRecord(tmp_path / "lost").read()
    cause = f"rank {devices - 1} " + ("(pid" if act is kill else "raised KeyError: 'a bug'")
    assert found["status"] == "finished"
    assert len(found["restarts"]) == 1 and found["restarts"][0].startswith(cause)
    assert [row["val/loss"] for row in rows(tmp_path / "whole/metrics.csv")] == [
        row["val/loss"] for row in rows(tmp_path / "lost/metrics.csv")
    ]


def test_a_user_error_is_not_retried(train: Train, tmp_path: Path) -> None:
    from support.images import write_images

    root = write_images(tmp_path / "bad", {f"{split}/{name}": 4 for split in ("train", "val") for name in ("a", "b")})
    (root / "train/b/002.png").write_bytes(b"no picture")
    start_s = time.monotonic()
    with pytest.raises(DataError, match=r"cannot read the image .*002\.png"):
        train(f"data.root={root}", "trainer.devices=2", "elastic.max_restarts=2")
    assert time.monotonic() - start_s < 20
