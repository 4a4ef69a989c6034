import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from alexlab.config.resolve import accumulation_steps
from alexlab.distributed import hardware
from alexlab.distributed.devices import num_ranks
from alexlab.distributed.launch import Limits, launch
from alexlab.distributed.signals import signals
from alexlab.errors import ConfigError, DataError, RankError
from support.runs import names, rows, scalars

pytestmark = pytest.mark.slow

LIMITS = Limits(timeout_s=60.0, shutdown_s=2)


def test_one_and_two_devices_train_and_score_equally(train: Callable[..., float | None], tmp_path: Path) -> None:
    """Without dropout, with equal batches and augmentation, only the order of floating-point sums differs."""
    found, best = {}, {}
    for devices in (1, 2):
        folder = tmp_path / f"on{devices}"
        options = ("model.dropout=0", "trainer.max_epochs=2", "augmentation=inception", "optimizer=sgd")
        best[devices] = train(f"trainer.devices={devices}", *options, run_dir=folder)
        found[devices] = rows(folder / "metrics.csv")
        assert sorted(names(folder)) == sorted(
            ["checkpoints", "layers.csv", "metrics.csv", "predictions", next(folder.glob("events*")).name]
        )
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert len(scalars(folder)["val/top1"]) == 2
    assert best[1] == best[2]
    for one, two in zip(found[1], found[2], strict=True):
        assert (one["val/top1"], one["val/top5"], one["train/top1"]) == (
            two["val/top1"],
            two["val/top5"],
            two["train/top1"],
        )
        for name in ("val/loss", "train/loss"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-5), name


def test_accumulated_batches_take_the_same_steps(train: Callable[..., float | None], tmp_path: Path) -> None:
    losses = {}
    for accumulate, devices in ((1, 1), (2, 1), (2, 2)):
        folder = tmp_path / f"{accumulate}by{devices}"
        options = (
            f"trainer.accumulate_grad_batches={accumulate}",
            f"trainer.devices={devices}",
            "trainer.max_epochs=2",
        )
        train(*options, "model.dropout=0", "optimizer=sgd", run_dir=folder)
        losses[accumulate, devices] = float(rows(folder / "metrics.csv")[-1]["val/loss"])
        assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    assert list(losses.values()) == pytest.approx([losses[1, 1]] * 3, rel=1e-5)


def test_launch_returns_the_value_of_rank_0() -> None:
    def task() -> tuple[int, int, int]:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.get_num_threads()

    threads = max(1, hardware.num_cores() // 2)
    assert launch(task, num_ranks=2, isolated=False, limits=LIMITS) == (0, 2, threads)


def test_an_isolated_job_is_a_child_process_without_rank_variables() -> None:
    pid, ranks = launch(lambda: (os.getpid(), "RANK" in os.environ), num_ranks=1, isolated=True, limits=LIMITS)
    assert pid != os.getpid()
    assert not ranks
    assert launch(os.getpid, num_ranks=1, isolated=False, limits=LIMITS) == os.getpid()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_and_the_others_are_terminated(rank: int) -> None:
    def task() -> None:
        if int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    start_s = time.monotonic()
    with pytest.raises(
        RankError, match=rf"rank {rank} \(pid \d+\) was killed by SIGKILL; the other ranks were terminated"
    ):
        launch(task, num_ranks=2, isolated=False, limits=LIMITS)
    assert time.monotonic() - start_s < 10


def test_the_error_of_a_rank_is_raised_by_launch() -> None:
    def task() -> None:
        if os.environ["RANK"] == "1":
            raise DataError("cannot read the image x.png: it is empty")
        time.sleep(60)

    with pytest.raises(DataError, match=r"^cannot read the image x\.png: it is empty$"):
        launch(task, num_ranks=2, isolated=False, limits=LIMITS)

    def bug() -> None:
        raise KeyError("missing")

    with pytest.raises(RankError, match=r"^rank 0 raised KeyError: 'missing'; the other ranks were terminated$"):
        launch(bug, num_ranks=1, isolated=True, limits=LIMITS)


def test_the_traceback_of_a_failed_run_holds_no_store() -> None:
    """Torch 2.11 aborts a process forked later, such as the next job of a sweep, when it collects the store."""
    with pytest.raises(RankError) as caught:
        launch(lambda: {}["missing"], num_ranks=2, isolated=True, limits=LIMITS)
    frames = [entry.frame.f_locals for entry in caught.traceback]
    assert any("processes" in frame for frame in frames)
    assert not any(isinstance(value, TCPStore) for frame in frames for value in frame.values())


def test_a_rank_that_exits_without_an_error_file_is_named() -> None:
    with pytest.raises(RankError, match=r"rank 0 \(pid \d+\) exited with code 3 without an error message"):
        launch(lambda: os._exit(3), num_ranks=1, isolated=True, limits=LIMITS)


def test_a_bad_image_fails_two_ranks_with_its_path(train: Callable[..., float | None], tmp_path: Path) -> None:
    from support.images import write_images

    root = write_images(tmp_path / "bad", {f"{split}/{name}": 4 for split in ("train", "val") for name in ("a", "b")})
    (root / "train/b/002.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot read the image .*train/b/002\.png: it is not a JPEG"):
        train(f"data.root={root}", "trainer.devices=2")


def test_num_ranks() -> None:
    assert num_ranks(accelerator="cpu", devices=2) == 2
    assert num_ranks(accelerator="cpu", devices="auto") == 1
    assert num_ranks(accelerator="cpu", devices="2") == 2


@pytest.mark.parametrize(
    ("accelerator", "devices", "message"),
    [
        ("cpu", 1000, "trainer.devices must be at most"),
        ("cpu", 0, "trainer.devices must be at least 1; got 0"),
        ("cpu", "two", "trainer.devices must be a number, a list of GPU indices or auto; got 'two'"),
        ("abacus", 1, "trainer.accelerator must be one of auto, cpu, gpu, cuda, mps; got 'abacus'"),
    ],
)
def test_invalid_devices(accelerator: str, devices: int | str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        num_ranks(accelerator=accelerator, devices=devices)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.accelerator=gpu needs a GPU, and none was found"):
        num_ranks(accelerator="gpu", devices=1)


def test_devices_must_equal_the_processes_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert num_ranks(accelerator="cpu", devices=2) == 2
    with pytest.raises(ConfigError, match=r"trainer\.devices must be the 2 processes that torchrun started; got 1"):
        num_ranks(accelerator="cpu", devices=1)


@pytest.mark.parametrize(
    ("batch", "nodes", "devices", "accumulate", "ranks", "expected"),
    [
        (64, 1, 1, 1, 1, 1),
        (64, 1, 2, 4, 2, 4),
        (64, 2, 1, 1, 1, 2),  # half of the ranks: twice as many batches of the same size
        (48, 4, 1, 1, 3, 2),  # 8 images per rank instead of 12, since 16 would need more memory
        (64, 4, 1, 1, 3, None),  # 64 images cannot be divided by three
        (64, 2, 2, 2, 2, 4),
    ],
)
def test_the_global_batch_stays_on_fewer_ranks(
    batch: int, nodes: int, devices: int, accumulate: int, ranks: int, expected: int | None
) -> None:
    trainer = {"num_nodes": nodes, "devices": devices, "accelerator": "cpu", "accumulate_grad_batches": accumulate}
    trainer["strategy"] = "auto"
    assert accumulation_steps({"data": {"batch_size": batch}, "trainer": trainer}, ranks) == expected


def survives_hangup() -> bool:
    for pid in (os.getppid(), os.getpid()):
        os.kill(pid, signal.SIGHUP)
    time.sleep(0.2)
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_ranks_and_their_parent_ignore_sighup_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.install():
            assert launch(survives_hangup, num_ranks=2, isolated=True, limits=LIMITS) is True
    finally:
        signal.signal(signal.SIGHUP, before)
