"""Checkpoints of every wrong shape: each is called by its name, and the run resumes from what is whole."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alexlab.config import build
from alexlab.errors import ConfigError, DiskError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.runs.record import RunRecord
from alexlab.training.restore import check_checkpoint, choose_checkpoint, load_best
from support.runs import rows

Train = Callable[..., float | None]
Content = dict[str, Any]
FIT = "loops/fit_loop"
ADAM = "optimizer_states/0"
GONE = object()


@pytest.fixture(scope="module")
def parts(trained_run: Path) -> Any:
    """The module, on the device meta, and the trainer of `trained_run`."""
    config = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)["alexlab"]["config"]
    module = build.classifier(config, build.data(config).find_splits(), device="meta")
    return SimpleNamespace(module=module, trainer=build.trainer(config, trained_run, num_ranks=1))


@pytest.fixture
def content(trained_run: Path) -> Content:
    found: Content = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)
    return found


def put(content: Any, where: str, value: Any) -> None:
    """Set the entry at a path such as `loops/fit_loop`, or remove it."""
    *parents, last = [int(name) if name.isdigit() else name for name in where.split("/")]
    for name in parents:
        content = content[name]
    if value is GONE:
        del content[last]
    else:
        content[last] = value


def test_what_a_run_has_written_is_whole(parts: Any, content: Content) -> None:
    check_checkpoint(content, parts.module, parts.trainer)


# Where in a checkpoint, what is put there, and words of the reason.
SHAPES: list[tuple[str, Any, str]] = [
    ("epoch", GONE, "it has no epoch"),
    ("epoch", "2", "epoch must be a int; got str"),
    ("global_step", None, "global_step must be a int; got NoneType"),
    ("global_step", -1, "global_step must be at least 0; got -1"),
    ("pytorch-lightning_version", GONE, "it has no pytorch-lightning_version"),
    ("state_dict", GONE, "it has no state_dict"),
    ("state_dict", [], "state_dict must be a dict; got list"),
    ("state_dict/net.features.conv1.weight", GONE, "it has no state_dict.net.features.conv1.weight"),
    ("state_dict/net.features.conv1.weight", torch.ones(2, 3, 11, 11), r"tensor of the shape \(4, 3, 11, 11\); got \(2, 3, 11, 11\)"),
    ("state_dict/net.features.conv1.bias", "text", r"tensor of the shape \(4,\); got str"),
    ("state_dict/net.features.conv1.bias", torch.full((4,), float("nan")), "its weights must be finite; net.features.conv1.bias"),
    ("state_dict/net.surprise", torch.ones(3), "must hold the weights of the net; net.surprise is none of them"),
    ("state_dict/7", torch.ones(3), "must hold the weights of the net; 7 is none of them"),
    ("loops", GONE, "it has no loops"),
    ("loops", None, "loops must be a dict; got NoneType"),
    (FIT, GONE, "it has no loops.fit_loop"),
    (f"{FIT}/epoch_progress", GONE, "it has no loops.fit_loop.epoch_progress"),
    (f"{FIT}/epoch_progress/current", [1], "epoch_progress.current must be a dict; got list"),
    (f"{FIT}/epoch_progress/current/processed", "3", "current.processed must be a int; got str"),
    (f"{FIT}/epoch_loop.batch_progress/current/ready", -4, "current.ready must be at least 0; got -4"),
    (f"{FIT}/epoch_loop.batch_progress/is_last_batch", 1, "is_last_batch must be a bool; got int"),
    (f"{FIT}/epoch_loop.state_dict", GONE, "it has no loops.fit_loop.epoch_loop.state_dict"),
    ("callbacks", GONE, "it has no callbacks"),
    ("callbacks", [], "callbacks must be a dict; got list"),
    ("callbacks/CheckpointCallback", [0.5], "callbacks.CheckpointCallback must be a dict; got list"),
    ("callbacks/CheckpointCallback/best_score", GONE, "it has no callbacks.CheckpointCallback.best_score"),
    ("callbacks/CheckpointCallback/best_score", "high", "best_score must be a None or float; got str"),
    ("callbacks/EpochLog/rows", {}, "callbacks.EpochLog.rows must be a list; got dict"),
    ("optimizer_states", GONE, "it has no optimizer_states"),
    ("optimizer_states", [], "optimizer_states must have 1 entries; it has 0"),
    (ADAM, [], "optimizer_states.0 must be a dict; got list"),
    (f"{ADAM}/state", GONE, "it has no optimizer_states.0.state"),
    (f"{ADAM}/state", {}, "it has no state of the optimizer"),
    (f"{ADAM}/state/0/exp_avg", GONE, "it has no optimizer_states.0.state.0.exp_avg"),
    (f"{ADAM}/state/0/exp_avg", torch.ones(3), r"0.exp_avg must be a tensor of the shape \(4, 3, 11, 11\); got \(3,\)"),
    (f"{ADAM}/state/999", {}, "it has one of 999"),
    (f"{ADAM}/param_groups", [], "param_groups must be a list; got list without entries"),
    (f"{ADAM}/param_groups/0/params", [0, 1], r"the groups of the optimizer must have \[\d+\] parameters; they have \[2\]"),
    (f"{ADAM}/param_groups/0/lr", "fast", "param_groups.0.lr must be a float; got str"),
    (f"{ADAM}/param_groups/0/betas", GONE, "it has no optimizer_states.0.param_groups.0.betas"),
    ("lr_schedulers", [], "lr_schedulers must have 1 entries; it has 0"),
    ("lr_schedulers/0/last_epoch", GONE, "it has no lr_schedulers.0.last_epoch"),
    ("lr_schedulers/0", 5, "it has no lr_schedulers.0"),
    ("alexlab", GONE, "it has no alexlab"),
    ("alexlab", "text", "alexlab must be a dict; got str"),
    ("alexlab/best", {"top1": "high"}, "alexlab.best.top1 must be a float; got str"),
    ("alexlab/best", {"top1": float("nan")}, "alexlab.best.top1 must be a number; got nan"),
    ("alexlab/classes", ["ant", "bee"], "it must be of the classes"),
    ("alexlab/mid_epoch", GONE, "it has no alexlab.mid_epoch"),
    ("alexlab/mid_epoch/train_counts", [], "train_counts must be a list; got list without entries"),
    ("alexlab/mid_epoch/train_counts/0/count", GONE, "it has no alexlab.mid_epoch.train_counts.0.count"),
    ("alexlab/mid_epoch/train_counts/0/count", "many", "count must be a float; got str"),
    ("alexlab/mid_epoch/accumulate_grad_batches", None, "accumulate_grad_batches must be a int; got NoneType"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "value", "words"), SHAPES, ids=[f"{where}-{number}" for number, (where, *_) in enumerate(SHAPES)]
)
def test_a_checkpoint_of_the_wrong_shape(where: str, value: Any, words: str, parts: Any, content: Content) -> None:
    put(content, where, value)
    with pytest.raises(ValueError, match=words) as caught:
        check_checkpoint(content, parts.module, parts.trainer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, 7, "text", [], [torch.ones(3)], torch.ones(3), {}])
def test_what_is_no_checkpoint_at_all(content: Any, parts: Any) -> None:
    with pytest.raises(ValueError, match=r"a checkpoint must be a dict; got|it has no epoch"):
        check_checkpoint(content, parts.module, parts.trainer)


def folder(tmp_path: Path, content: Content, **steps: int | bytes | None) -> Path:
    """Write `last`, `best` and `step_<n>` checkpoints, each of a step, of these bytes, or not at all; return `last.ckpt`."""
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
def test_the_newest_whole_one_is_resumed_from(
    steps: dict[str, Any], expected: str, parts: Any, content: Content, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(content, f"{FIT}/epoch_progress/current/processed", 1)  # epochs are left
    last = folder(tmp_path, content, **steps)
    chosen = choose_checkpoint(last, parts.module, parts.trainer)
    assert chosen["name"] == expected
    assert chosen["best_is_lost"] == (isinstance(steps.get("best"), bytes))
    if expected != "last.ckpt":
        assert f"resuming from {expected}, step {steps[expected[:-5]]}, because last.ckpt: " in caplog.text


def test_a_lost_best_checkpoint_that_no_epoch_could_replace(parts: Any, content: Content, tmp_path: Path) -> None:
    last = folder(tmp_path, content, last=9, best=b"")
    with pytest.raises(
        ConfigError, match=r"best\.ckpt is corrupt \(it is empty.*\), and no epoch is left .*more than 3, or use"
    ):
        choose_checkpoint(last, parts.module, parts.trainer)


def test_a_flipped_bit_is_found(parts: Any, trained_run: Path, tmp_path: Path) -> None:
    """PyTorch does not verify the checksums of its archives: the weights would be others."""
    content = bytearray((trained_run / "checkpoints/best.ckpt").read_bytes())
    weight = torch.load(trained_run / "checkpoints/best.ckpt", weights_only=True)["state_dict"][
        "net.classifier.fc6.weight"
    ]
    content[bytes(content).index(weight.numpy().tobytes()) + 1] ^= 1
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / name).write_bytes(content)
    words = "it is corrupt: the checksum of its record .*/data/"
    with pytest.raises(ConfigError, match=words):
        choose_checkpoint(tmp_path / "last.ckpt", parts.module, parts.trainer)
    with pytest.raises(DiskError, match=words):
        load_best(parts.module, tmp_path / "best.ckpt")
    with pytest.raises(ConfigError, match=words):
        load_checkpoint(str(tmp_path / "best.ckpt"), device="cpu")


def test_none_is_whole(parts: Any, content: Content, tmp_path: Path) -> None:
    put(content, "loops", GONE)
    last = folder(tmp_path, content, last=9, best=b"", step_00000006=b"half")
    words = r"none of the checkpoints .* \(last\.ckpt: it has no loops; step_00000006\.ckpt: .*; best\.ckpt: it is empty.*start a new run"
    with pytest.raises(ConfigError, match=words):
        choose_checkpoint(last, parts.module, parts.trainer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "its end is missing"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: torch.save({"epoch": 3}, path), "it has no state_dict"),
        (lambda path: torch.save({"state_dict": {"net.a": torch.ones(3)}}, path), "Missing key"),
    ],
)
def test_the_best_checkpoint_is_read_back(
    change: Callable[[Path], Any], words: str, trained_run: Path, parts: Any, tmp_path: Path
) -> None:
    path = tmp_path / "best.ckpt"
    shutil.copy(trained_run / "checkpoints/best.ckpt", path)
    change(path)
    with pytest.raises(
        DiskError, match=f"the best checkpoint was written, but cannot be read back: .*{words}"
    ) as caught:
        load_best(copy.deepcopy(parts.module).to_empty(device="cpu"), path)
    assert "\n" not in str(caught.value)


def test_a_run_does_not_finish_with_a_corrupt_best_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where there is no test split to score it on; resumed, the run makes another one."""
    from alexlab.training.callbacks.checkpoint import CheckpointCallback
    from support.images import IMAGES, write_images

    root = write_images(
        tmp_path / "two", {name: count for name, count in IMAGES.items() if not name.startswith("test")}
    )
    best = tmp_path / "run/checkpoints/best.ckpt"

    def spoil(self: Any, trainer: Any, pl_module: Any) -> None:
        best.with_suffix(".copy").write_bytes(b"half of it")
        best.with_suffix(".copy").replace(best)

    words = (f"data.root={root}", "trainer.max_epochs=2")
    with monkeypatch.context() as patched:
        patched.setattr(CheckpointCallback, "on_train_end", spoil)
        with pytest.raises(DiskError, match="the best checkpoint was written, but cannot be read back"):
            train(*words)
    assert RunRecord(tmp_path / "run").read()["status"] == "failed"
    assert train(*words[:1], "trainer.max_epochs=3", resumed=True) is not None
    assert (
        f"{best} is lost (it is no file that torch.save or safetensors has written, or it is corrupt); the best of"
        in caplog.text
    )
    content = torch.load(best, weights_only=True)
    assert content["epoch"] == 2 and content["alexlab"]["best"]["epoch"] == 2
    assert RunRecord(tmp_path / "run").read()["status"] == "finished"
    assert len(rows(tmp_path / "run/metrics.csv")) == 3
