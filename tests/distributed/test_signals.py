"""A signal at every point of a run: the run stops after the step with a checkpoint, and resumes exactly."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Timer

from alexlab.distributed.signals import Interrupted, Signals
from alexlab.records.layout import BEST, LAST
from alexlab.records.record import RunRecord
from alexlab.records.safe_load import load_file
from alexlab.tasks import rank
from alexlab.training.module import Classifier
from support.exact_resume import RECIPES, RecordedRun, compare, content, difference
from support.runs import ROOT, environment, rows

pytestmark = pytest.mark.slow

Train = Callable[..., float | None]


class Sender:
    """Sends a signal in the n-th training or validation batch of a run.

    Args:
        patch: patches the steps of the Classifier.
        signum: the signal.
        to: receivers of the signal: `own` for each rank, the number of one rank, or `parent`.
    """

    def __init__(self, patch: pytest.MonkeyPatch, signum: int, to: str | int = "own") -> None:
        self.signum, self.to = signum, to
        self.at, self.count = -1, 0
        for name in ("training_step", "validation_step"):
            patch.setattr(Classifier, name, self.counted(getattr(Classifier, name)))

    def counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counting(module: Classifier, batch: Any, batch_idx: int) -> Any:
            if self.count == self.at:
                if self.to == "parent" and module.global_rank == 0:
                    os.kill(os.getppid(), self.signum)
                if self.to in ("own", module.global_rank):
                    os.kill(os.getpid(), self.signum)
            self.count += 1
            return step(module, batch, batch_idx)

        return counting

    def arm(self, at: int, to: str | int = "own") -> None:
        self.at, self.to, self.count = at, to, 0


def resumed_at(last: Path) -> str:
    """Return the name of the uninterrupted run's checkpoint from which a run starts that resumes from `last`."""
    found = content(last)
    return f"{found['global_step'] - found['callbacks']['PreemptionCallback']['before_validation']:03d}.ckpt"


SIGNALLED = ("ema and norms", "validation within an epoch", "validation within an epoch, accumulated")


@pytest.mark.parametrize("recipe", SIGNALLED)
def test_a_signal_at_every_batch_resumes_exactly(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    sender = Sender(monkeypatch, signal.SIGTERM)
    run = RecordedRun(train, tmp_path)
    whole = run(*RECIPES[recipe], name="whole")
    batches, interrupted = sender.count, 0
    # Every third batch is enough with accumulation, since runs stop after whole steps only.
    for at in range(0, batches, 3 if "accumulated" in recipe else 1):
        sender.arm(at)
        with pytest.raises(Interrupted):
            run(*RECIPES[recipe], name=f"to_{at}")
        found = RunRecord(tmp_path / f"to_{at}").read()
        assert (found["status"], found["exit_code"]) == ("interrupted", 75)
        sender.arm(-1)
        last = tmp_path / f"to_{at}" / LAST
        start = resumed_at(last)
        resumed = run(*RECIPES[recipe], name=f"from_{at}", begin=last)
        compare(whole, resumed, start)
        interrupted += content(last)["callbacks"]["PreemptionCallback"]["before_validation"]
    assert interrupted >= 2, "a validation was interrupted"


def test_signals_to_one_rank_both_ranks_or_their_parent_resume_exactly(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = Sender(monkeypatch, signal.SIGUSR1)
    run = RecordedRun(train, tmp_path)
    overrides = ("trainer.devices=2", "augmentation=mixup")
    whole = run(*overrides, name="whole")
    to: list[str | int] = ["own", 0, 1, "parent"]
    interrupted = 0
    for number, at in enumerate((1, 6, 8, 11, 15)):  # 2 epochs of 6 training and 3 validation batches
        sender.arm(at, to[number % 4])
        sender.signum = (signal.SIGUSR1, signal.SIGHUP)[number % 2]
        start_s = time.monotonic()
        with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(sender.signum).name}"):
            run(*overrides, name=f"to_{at}")
        assert time.monotonic() - start_s < 10
        sender.arm(-1)
        last = tmp_path / f"to_{at}" / LAST
        compare(whole, run(*overrides, name=f"from_{at}", begin=last), resumed_at(last))
        interrupted += content(last)["callbacks"]["PreemptionCallback"]["before_validation"]
    assert interrupted == 2


@pytest.mark.parametrize(
    "limit",
    [
        ("trainer.max_epochs=-1", "trainer.max_steps=6"),
        ("trainer.max_epochs=-1", "trainer.max_steps=8", "trainer.val_check_interval=2"),
        ("trainer.max_time=00:00:00:59",),
    ],
    ids=["max_steps at the end of an epoch", "max_steps within an epoch", "max_time"],
)
def test_a_signal_in_the_validation_after_the_last_step_resumes_exactly(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: tuple[str, ...]
) -> None:
    """The resumed run has nothing to train, but repeats the validation before it ends."""
    last_step = 6 if "trainer.max_steps=6" in limit else 8
    steps = []  # the time is up in the last one
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: 60.0 if last_step in steps else 0.0)
    train_batch, validate = Classifier.training_step, Classifier.validation_step

    def count(module: Classifier, batch: Any, batch_idx: int) -> Any:
        steps.append(module.global_step + 1)
        return train_batch(module, batch, batch_idx)

    def interrupt(module: Classifier, batch: Any, batch_idx: int) -> Any:
        if module.global_step == last_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", count)
    overrides = ("data.batch_size=4", "trainer.max_epochs=3", *limit)
    train(*overrides, run_dir=tmp_path / "whole")
    steps.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "validation_step", interrupt)
        with pytest.raises(Interrupted):
            train(*overrides, run_dir=tmp_path / "part")
    train(*overrides, run_dir=tmp_path / "part", resumed=True)
    assert steps == list(range(1, last_step + 1))
    for name in (LAST, BEST):
        assert difference(content(tmp_path / "whole" / name), content(tmp_path / "part" / name)) is None
    whole, part = (rows(tmp_path / name / "metrics.csv") for name in ("whole", "part"))
    for row in (*whole, *part):
        row.pop("train/images_per_s", None)  # of the last epoch, only the uninterrupted run has it
    assert whole == part


@pytest.mark.parametrize("step", [3, 9], ids=["first epoch", "last epoch"])
def test_a_signal_in_the_last_step_of_an_epoch_without_validation_keeps_its_metrics(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    overrides = ("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")
    train(*overrides, run_dir=tmp_path / "whole")
    original = Classifier.training_step

    def interrupt(module: Classifier, batch: Any, batch_idx: int) -> Any:
        if module.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", interrupt)
        with pytest.raises(Interrupted):
            train(*overrides, run_dir=tmp_path / "part")
    assert load_file(tmp_path / "part" / LAST)["global_step"] == step
    train(*overrides, run_dir=tmp_path / "part", resumed=True)
    whole, part = (rows(tmp_path / name / "metrics.csv") for name in ("whole", "part"))
    for row in (*whole, *part):
        del row["train/images_per_s"]
    assert whole == part


def test_a_signal_before_and_after_training(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training nothing is lost; after it the resumed run scores the test split."""
    moments = {"log_model": rank, "on_train_end": Classifier, "on_test_start": Classifier}
    for moment, where in moments.items():
        with monkeypatch.context() as patch:
            patch.setattr(where, moment, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM), raising=False)
            with pytest.raises(Interrupted):
                train(run_dir=tmp_path / moment)
        assert RunRecord(tmp_path / moment).read()["exit_code"] == 75
        assert (tmp_path / moment / LAST).is_file() == (moment != "log_model")
        train(run_dir=tmp_path / moment, resumed=True)
        found = RunRecord(tmp_path / moment).read()
        assert found["status"] == "finished" and found["scores"]["test/count"] == 7
        assert len(rows(tmp_path / moment / "metrics.csv")) == 1


def test_a_second_signal_raises_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    received = Signals()
    with received.install(), received.handler(lambda signum: None):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the same signal, forwarded by the parent
        assert received.first == signal.SIGTERM
        monkeypatch.setattr("alexlab.distributed.signals.DEBOUNCE_S", 0.0)
        with pytest.raises(Interrupted) as stopped:
            signal.raise_signal(signal.SIGINT)
    assert (stopped.value.exit_code, stopped.value.agreed) == (130, False)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert received.first is None, "a later run in this process would stop"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.scenario(name="ignored_signals")
def test_ignored_signals_stay_ignored(signum: signal.Signals) -> None:
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with Signals().install():
            signal.raise_signal(signum)
    finally:
        signal.signal(signum, before)


@pytest.mark.scenario(name="ignored_signals")
def test_sighup_is_a_preemption() -> None:
    with Signals().install(), pytest.raises(Interrupted, match="stopped by SIGHUP") as stopped:
        signal.raise_signal(signal.SIGHUP)
    assert stopped.value.exit_code == 75


def test_loader_processes_survive_a_signal_to_all_processes(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler signals every process of a job, including the loaders."""

    def to_all(module: Classifier, batch: Any, batch_idx: int) -> None:
        if module.global_step == 1:
            loaders = [process.pid for process in multiprocessing.active_children() if process.pid]
            assert len(loaders) == 4, "two per split"
            for pid in [*loaders, os.getpid()]:
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.3)

    monkeypatch.setattr(Classifier, "on_before_zero_grad", lambda module, optimizer: to_all(module, None, 0))
    with pytest.raises(Interrupted):
        train("data.num_workers=2")
    assert content(tmp_path / "run" / LAST)["global_step"] == 2


LOADS = """
import os, sys, time
from functools import partial
from torch.utils.data import DataLoader
from alexlab.data.datamodule import init_worker
loader = DataLoader(range(100), num_workers=1, worker_init_fn=partial(init_worker, os.getpid()), multiprocessing_context="fork")
batches = iter(loader)
next(batches)
print(batches._workers[0].pid, flush=True)
time.sleep(60)
"""


def test_loader_processes_die_with_a_killed_parent() -> None:
    """They hold the lock on the run folder: `resume=` would be refused until they notice by themselves, after 5 s."""
    python = [sys.executable, "-c", LOADS]
    with subprocess.Popen(
        python, stdout=subprocess.PIPE, text=True, env=environment(PYTHONPATH=str(ROOT / "src"))
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
        end_s = time.monotonic() + 2
        while Path(f"/proc/{worker}").exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < end_s
            time.sleep(0.02)
