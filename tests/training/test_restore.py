"""Malformed checkpoints: the error names the faulty entry, and the run resumes from a valid checkpoint."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from alexlab.config import build
from alexlab.config.data import data_config
from alexlab.config.trainer import build_trainer
from alexlab.errors import ConfigError, DiskError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.records.record import RunRecord
from alexlab.training.checkpoint_check import check_checkpoint
from alexlab.training.restore import choose_checkpoint, load_best
from support.runs import rows

pytestmark = pytest.mark.scenario(name="corrupt_files")

Train = Callable[..., float | None]
Content = dict[str, Any]
FIT = "loops/fit_loop"
ADAM = "optimizer_states/0"
REMOVED = object()


@pytest.fixture(scope="module")
def parts(trained_run: Path) -> Any:
    """Return the module, on the meta device, and the trainer of `trained_run`."""
    config = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)["alexlab"]["config"]
    module = build.classifier(config, data_config(config).find_splits(), device="meta")
    return SimpleNamespace(module=module, trainer=build_trainer(config, trained_run, num_ranks=1))


@pytest.fixture
def content(trained_run: Path) -> Content:
    found: Content = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)
    return found


def put(content: Any, where: str, value: Any) -> None:
    """Set the entry at a path such as `loops/fit_loop`, or remove it."""
    *parents, last = [int(name) if name.isdigit() else name for name in where.split("/")]
    for name in parents:
        content = content[name]
    if value is REMOVED:
        del content[last]
    else:
        content[last] = value


def test_a_checkpoint_of_a_run_is_valid(parts: Any, content: Content) -> None:
    check_checkpoint(content, parts.module, parts.trainer)


# Path of an entry, the value put there, and a part of the expected message.
MALFORMED: list[tuple[str, Any, str]] = [
    ("epoch", REMOVED, "it has no epoch"),
    ("epoch", "2", "epoch must be of type int; got str"),
    ("global_step", None, "global_step must be of type int; got NoneType"),
    ("global_step", -1, "global_step must be at least 0; got -1"),
    ("pytorch-lightning_version", REMOVED, "it has no pytorch-lightning_version"),
    ("state_dict", REMOVED, "it has no state_dict"),
    ("state_dict", [], "state_dict must be a dict; got list"),
    ("state_dict/net.features.conv1.weight", REMOVED, "it has no state_dict.net.features.conv1.weight"),
    ("state_dict/net.features.conv1.weight", torch.ones(2, 3, 11, 11), r"tensor of shape \(4, 3, 11, 11\); got \(2, 3, 11, 11\)"),
    ("state_dict/net.features.conv1.bias", "text", r"tensor of shape \(4,\); got str"),
    ("state_dict/net.features.conv1.bias", torch.full((4,), float("nan")), "its weights must be finite; net.features.conv1.bias"),
    ("state_dict/net.surprise", torch.ones(3), "must contain only weights of the net; got net.surprise"),
    ("state_dict/7", torch.ones(3), "must contain only weights of the net; got 7"),
    ("loops", REMOVED, "it has no loops"),
    ("loops", None, "loops must be a dict; got NoneType"),
    (FIT, REMOVED, "it has no loops.fit_loop"),
    (f"{FIT}/epoch_progress", REMOVED, "it has no loops.fit_loop.epoch_progress"),
    (f"{FIT}/epoch_progress/current", [1], "epoch_progress.current must be a dict; got list"),
    (f"{FIT}/epoch_progress/current/processed", "3", "current.processed must be of type int; got str"),
    (f"{FIT}/epoch_loop.batch_progress/current/ready", -4, "current.ready must be at least 0; got -4"),
    (f"{FIT}/epoch_loop.batch_progress/is_last_batch", 1, "is_last_batch must be of type bool; got int"),
    (f"{FIT}/epoch_loop.state_dict", REMOVED, "it has no loops.fit_loop.epoch_loop.state_dict"),
    ("callbacks", REMOVED, "it has no callbacks"),
    ("callbacks", [], "callbacks must be a dict; got list"),
    ("callbacks/CheckpointCallback", [0.5], "callbacks.CheckpointCallback must be a dict; got list"),
    ("callbacks/CheckpointCallback/best_score", REMOVED, "it has no callbacks.CheckpointCallback.best_score"),
    ("callbacks/CheckpointCallback/best_score", "high", "best_score must be of type None or float; got str"),
    ("callbacks/EpochLog/rows", {}, "callbacks.EpochLog.rows must be a list; got dict"),
    ("optimizer_states", REMOVED, "it has no optimizer_states"),
    ("optimizer_states", [], "optimizer_states must have 1 entries; it has 0"),
    (ADAM, [], "optimizer_states.0 must be a dict; got list"),
    (f"{ADAM}/state", REMOVED, "it has no optimizer_states.0.state"),
    (f"{ADAM}/state", {}, "it has no optimizer state"),
    (f"{ADAM}/state/0/exp_avg", REMOVED, "it has no optimizer_states.0.state.0.exp_avg"),
    (f"{ADAM}/state/0/exp_avg", torch.ones(3), r"0.exp_avg must be a tensor of shape \(4, 3, 11, 11\); got \(3,\)"),
    (f"{ADAM}/state/999", {}, "got one for 999"),
    (f"{ADAM}/param_groups", [], "param_groups must not be empty"),
    (f"{ADAM}/param_groups/0/params", [0, 1], r"the optimizer's groups must have \[\d+\] parameters; got \[2\]"),
    (f"{ADAM}/param_groups/0/lr", "fast", "param_groups.0.lr must be of type float; got str"),
    (f"{ADAM}/param_groups/0/betas", REMOVED, "it has no optimizer_states.0.param_groups.0.betas"),
    ("lr_schedulers", [], "lr_schedulers must have 1 entries; it has 0"),
    ("lr_schedulers/0/last_epoch", REMOVED, "it has no lr_schedulers.0.last_epoch"),
    ("lr_schedulers/0", 5, "it has no lr_schedulers.0"),
    ("alexlab", REMOVED, "it has no alexlab"),
    ("alexlab", "text", "alexlab must be a dict; got str"),
    ("alexlab/best", {"top1": "high"}, "alexlab.best.top1 must be of type float; got str"),
    ("alexlab/best", {"top1": float("nan")}, "alexlab.best.top1 must be a number; got nan"),
    ("alexlab/classes", ["ant", "bee"], "its classes must be"),
    ("alexlab/mid_epoch", REMOVED, "it has no alexlab.mid_epoch"),
    ("alexlab/mid_epoch/train_counts", [], "train_counts must not be empty"),
    ("alexlab/mid_epoch/train_counts/0/count", REMOVED, "it has no alexlab.mid_epoch.train_counts.0.count"),
    ("alexlab/mid_epoch/train_counts/0/count", "many", "count must be of type float; got str"),
    ("alexlab/mid_epoch/accumulate_grad_batches", None, "accumulate_grad_batches must be of type int; got NoneType"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "value", "message"), MALFORMED, ids=[f"{where}-{number}" for number, (where, *_) in enumerate(MALFORMED)]
)
def test_a_malformed_checkpoint_is_rejected(where: str, value: Any, message: str, parts: Any, content: Content) -> None:
    put(content, where, value)
    with pytest.raises(ValueError, match=message) as caught:
        check_checkpoint(content, parts.module, parts.trainer)
    assert "\n" not in str(caught.value)


def test_a_gradient_scaler_may_have_skipped_every_step(parts: Any, content: Content) -> None:
    put(content, f"{ADAM}/state", {})
    content["MixedPrecision"] = {"scale": 1024.0}
    check_checkpoint(content, parts.module, parts.trainer)


def test_callbacks_of_other_packages_may_change_the_types_of_their_values(
    parts: Any, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, stopped = EarlyStopping("val/top1"), EarlyStopping("val/top1")
    stopped.stopping_reason_message = "no improvement"
    monkeypatch.setattr(parts.trainer, "callbacks", [fresh])
    content["callbacks"][fresh.state_key] = stopped.state_dict()
    check_checkpoint(content, parts.module, parts.trainer)
    del content["callbacks"][fresh.state_key]["wait_count"]
    with pytest.raises(ValueError, match=r"it has no callbacks\.EarlyStopping.*\.wait_count"):
        check_checkpoint(content, parts.module, parts.trainer)


@pytest.mark.parametrize("content", [None, 7, "text", [], [torch.ones(3)], torch.ones(3), {}])
def test_other_content_is_rejected(content: Any, parts: Any) -> None:
    with pytest.raises(ValueError, match=r"a checkpoint must be a dict; got|it has no epoch"):
        check_checkpoint(content, parts.module, parts.trainer)


def folder(tmp_path: Path, content: Content, **steps: int | bytes | None) -> Path:
    """Write `last`, `best` and `step_<n>` checkpoints of the given step or with the given bytes; return `last.ckpt`."""
    for name, step in steps.items():
        path = tmp_path / f"{name}.ckpt"
        if isinstance(step, bytes):
            path.write_bytes(step)
        elif step is not None:
            torch.save({**content, "global_step": step}, path)
    return tmp_path / "last.ckpt"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({"last": 9, "best": 3}, "last.ckpt"),
        ({"last": b"", "best": 3}, "best.ckpt"),
        ({"last": b"half", "best": 3, "step_00000006": 6}, "step_00000006.ckpt"),
        ({"last": b"half", "best": 9, "step_00000006": 6}, "best.ckpt"),
        ({"last": b"half", "best": 3, "step_00000006": 6, "step_00000009": b"half"}, "step_00000006.ckpt"),
        ({"best": 3}, "best.ckpt"),
        ({"step_00000006": 6, "best": b"half"}, "step_00000006.ckpt"),
        ({}, "last.ckpt"),
    ],
)
def test_the_latest_valid_checkpoint_is_resumed(
    steps: dict[str, Any], expected: str, parts: Any, content: Content, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(content, f"{FIT}/epoch_progress/current/processed", 1)  # so that epochs remain
    last = folder(tmp_path, content, **steps)
    chosen = choose_checkpoint(last, parts.module, parts.trainer)
    assert chosen["name"] == expected
    assert chosen["best_is_lost"] == (isinstance(steps.get("best"), bytes))
    if expected != "last.ckpt":
        assert f"resuming from {expected}, step {steps[expected[:-5]]}, because last.ckpt: " in caplog.text


def test_a_corrupt_best_checkpoint_is_an_error_after_the_last_epoch(
    parts: Any, content: Content, tmp_path: Path
) -> None:
    last = folder(tmp_path, content, last=9, best=b"")
    with pytest.raises(
        ConfigError, match=r"best\.ckpt cannot be used \(it is empty.*\), and no epoch is left .*above 3, or use"
    ):
        choose_checkpoint(last, parts.module, parts.trainer)


def test_a_flipped_bit_is_detected(parts: Any, trained_run: Path, tmp_path: Path) -> None:
    """PyTorch does not verify the checksums of its archives: the flipped weight would be loaded."""
    content = bytearray((trained_run / "checkpoints/best.ckpt").read_bytes())
    weight = torch.load(trained_run / "checkpoints/best.ckpt", weights_only=True)["state_dict"][
        "net.classifier.fc6.weight"
    ]
    content[bytes(content).index(weight.numpy().tobytes()) + 1] ^= 1
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / name).write_bytes(content)
    message = "it is corrupt: the checksum of its record .*/data/"
    with pytest.raises(ConfigError, match=message):
        choose_checkpoint(tmp_path / "last.ckpt", parts.module, parts.trainer)
    with pytest.raises(DiskError, match=message):
        load_best(parts.module, tmp_path / "best.ckpt")
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(str(tmp_path / "best.ckpt"), device="cpu")


def test_resuming_fails_if_every_checkpoint_is_corrupt(parts: Any, content: Content, tmp_path: Path) -> None:
    put(content, "loops", REMOVED)
    last = folder(tmp_path, content, last=9, best=b"", step_00000006=b"half")
    message = r"cannot resume from any checkpoint in .* \(last\.ckpt: it has no loops; step_00000006\.ckpt: .*; best\.ckpt: it is empty.*start a new run"
    with pytest.raises(ConfigError, match=message):
        choose_checkpoint(last, parts.module, parts.trainer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "its end is missing"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: torch.save({"epoch": 3}, path), "it has no state_dict"),
        (lambda path: torch.save({"state_dict": {"net.a": torch.ones(3)}}, path), "Missing key"),
    ],
)
def test_a_best_checkpoint_that_cannot_be_read_back_is_an_error(
    change: Callable[[Path], Any], message: str, trained_run: Path, parts: Any, tmp_path: Path
) -> None:
    path = tmp_path / "best.ckpt"
    shutil.copy(trained_run / "checkpoints/best.ckpt", path)
    change(path)
    with pytest.raises(
        DiskError, match=f"the best checkpoint .* was written but cannot be read back: .*{message}"
    ) as caught:
        load_best(copy.deepcopy(parts.module).to_empty(device="cpu"), path)
    assert "\n" not in str(caught.value)


def test_a_run_does_not_finish_with_a_corrupt_best_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even without a test split, the best checkpoint is read back; the resumed run saves a new one."""
    from alexlab.training.callbacks.checkpoint import CheckpointCallback
    from support.images import IMAGES, write_images

    root = write_images(
        tmp_path / "two", {name: count for name, count in IMAGES.items() if not name.startswith("test")}
    )
    best = tmp_path / "run/checkpoints/best.ckpt"

    def spoil(self: Any, trainer: Any, pl_module: Any) -> None:
        best.with_suffix(".copy").write_bytes(b"half of it")
        best.with_suffix(".copy").replace(best)

    overrides = (f"data.root={root}", "trainer.max_epochs=2")
    with monkeypatch.context() as patched:
        patched.setattr(CheckpointCallback, "on_train_end", spoil)
        with pytest.raises(DiskError, match=r"the best checkpoint .* was written but cannot be read back"):
            train(*overrides)
    assert RunRecord(tmp_path / "run").read()["status"] == "failed"
    assert train(*overrides[:1], "trainer.max_epochs=3", resumed=True) is not None
    assert (
        f"{best} is lost (it was not written by torch.save or safetensors, or it is corrupt); the best of"
        in caplog.text
    )
    content = torch.load(best, weights_only=True)
    assert content["epoch"] == 2 and content["alexlab"]["best"]["epoch"] == 3
    assert RunRecord(tmp_path / "run").read()["status"] == "finished"
    assert len(rows(tmp_path / "run/metrics.csv")) == 3


def test_a_run_that_ends_before_a_new_best_checkpoint_does_not_finish(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has reached `max_steps`, so that no epoch follows; its recorded scores must not be replaced by none."""
    from alexlab.training.callbacks.checkpoint import CheckpointCallback

    best = tmp_path / "run/checkpoints/best.ckpt"
    overrides = ("trainer.max_epochs=5", "trainer.max_steps=6")

    def spoil(*arguments: Any) -> None:
        best.unlink()  # last.ckpt may be a link to the same file
        best.write_bytes(b"half of it")

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointCallback, "on_train_end", spoil)
        with pytest.raises(DiskError, match=r"the best checkpoint .* was written but cannot be read back"):
            train(*overrides)
    with pytest.raises(
        ConfigError, match=r"best.ckpt is lost, and the run ended before an epoch replaced it: resume with"
    ):
        train(*overrides, resumed=True)
    assert RunRecord(tmp_path / "run").read()["status"] == "failed"
    assert train("trainer.max_epochs=5", "trainer.max_steps=9", resumed=True) is not None


def test_tensorboard_hides_an_attempt_that_ended_before_its_first_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from alexlab.training.module import Classifier

    def fail(*arguments: Any) -> None:
        raise RuntimeError("the machine was switched off")

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "validation_step", fail)
        with pytest.raises(RuntimeError, match="switched off"):
            train("trainer.log_every_n_steps=1", "seed=1")
    train("trainer.log_every_n_steps=1", "seed=2", resumed=True)
    assert len(list((tmp_path / "run").glob("events.*"))) == 2
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    for tag in {*events.Tags()["scalars"]} - {"epoch"}:  # Lightning logs it three times per epoch
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
