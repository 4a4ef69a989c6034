"""Each suite on a tiny net: every contender runs, and every row has its figures."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alexlab.benchmark.config import Settings
from alexlab.benchmark.memory import children, private_mb
from alexlab.errors import ConfigError
from alexlab.tasks.benchmark import SUITES, check, run, suites, train_words
from support.images import write_images
from support.runs import TINY, plain

SMALL = (
    *(word for word in TINY if not word.startswith("scheduler")),
    "benchmark.pairs=2",
    "benchmark.train_images=32",
    "benchmark.val_images=8",
    "benchmark.steps=1",
    "benchmark.loader_images=16",
    "benchmark.files=[10]",
    "benchmark.classes=[3,5]",
    "benchmark.workers=[0,1]",
    "benchmark.ranks=[1,2]",
    "benchmark.widths=[1.0,2.0]",
)
CHOICES = {"model": "alexnet", "data": "folder", "augmentation": "inception", "optimizer": "sgd"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    return write_images(root, {"train/a": 20, "train/b": 20, "val/a": 6, "val/b": 6}, size=90)


def measured(suite: str, photographs: Path, out: Path, *words: str) -> dict[str, dict[str, Any]]:
    """The rows of a suite, by what they measure and beside what."""
    config = plain(*SMALL, f"suite={suite}", f"data.root={photographs}", *words, name="benchmark")
    run(config, run_dir=out, choices=CHOICES)
    found = json.loads((out / "benchmark.json").read_text())
    assert found["versions"]["torch"]
    assert found["hardware"]["cpu"]
    assert not (out / "cache").exists(), "packs of a benchmark are of no further use"
    for row in found["rows"]:
        assert len(row["values"]) == 2, row
        assert min(row["values"]) > 0, row
        assert not row["beside"] or len(row["others"]) == len(row["values"]), row
    return {f"{row['what']} | {row['beside']}": row for row in found["rows"]}


def test_loader(photographs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = measured("loader", photographs, tmp_path)
    names = [name for name in found if "ImageFolder" in name]
    assert [name.split(" | ")[0] for name in names] == [
        "from JPEG: random resized crop and flip",
        "from JPEG: crop and flip",
        "from shards: random resized crop and flip",
        "packed: random resized crop and flip",
        "packed: crop and flip",
    ]
    assert "machine" in capfd.readouterr().out


def test_step(photographs: Path, tmp_path: Path) -> None:
    found = measured("step", photographs, tmp_path)
    assert {name.split(" | ")[1] for name in found if name.startswith("alexnet")} >= {
        "the usual step: NCHW, default optimizer",
        "NCHW",
        "optimizer in a loop",
        "optimizer foreach",
        "memory given back",
    }
    first = next(row for name, row in found.items() if name.startswith("alexnet"))
    assert first["limit"].endswith("% of matrix products")


def test_fit(photographs: Path, tmp_path: Path) -> None:
    """Whole epochs of all four, with everything that a run leaves."""
    found = measured("epochs", photographs, tmp_path, "data.cache=packed")
    for other in ("a bare loop", "stock Lightning", "torchvision's reference"):
        for what in ("whole epochs", "training", "validation"):
            assert f"{what}: alexnet, packed | {other}" in found
    assert any(name.startswith("a durable checkpoint") for name in found)
    ours = tmp_path / "runs/ours_1"
    assert (ours / "checkpoints/best.ckpt").is_file()
    assert "train/loss" in (ours / "metrics.csv").read_text()


def test_fit_on_two_ranks(photographs: Path, tmp_path: Path) -> None:
    found = measured("epochs", photographs, tmp_path, "trainer.devices=2")
    assert "training: alexnet, JPEG, 2 ranks | stock Lightning, DDP" in found


def test_scale(photographs: Path, tmp_path: Path) -> None:
    found = measured("scaling", photographs, tmp_path)
    for name in (
        "10 files: listed by a walk | torchvision's ImageFolder",
        "10 files: known from the index | torchvision's ImageFolder",
        "step, 5 classes | 3 classes",
        "step, width 2 | width 1",
        "loader, 1 loader processes: alexnet, JPEG | 0 loader processes",
        "training, 1 loader processes: alexnet, JPEG | 0 loader processes",
        "training, 2 ranks: alexnet, JPEG | 1 rank",
    ):
        assert name in found, list(found)
    assert not (tmp_path / "files").exists()


def test_memory(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexlab.benchmark.memory.EVERY_S", 0.005)
    found = measured("memory", photographs, tmp_path, "data.num_workers=1")
    row = found["all processes: alexnet, packed | torchvision's reference"]
    main = found["the process that trains: alexnet, packed | torchvision's reference"]
    worker = found["a loader process: alexnet, packed | torchvision's reference"]
    assert row["median"] > main["median"] > worker["median"] > 0


def test_start_beside_a_script(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gaps and the helps; the first step takes half a minute of imports, and one is enough."""
    from alexlab.benchmark import startup

    took: list[Any] = []

    def once(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
        found = {name: [work()] for name, work in contenders.items()}
        took.append(found)
        return found

    monkeypatch.setattr(startup, "in_turn", once)
    words = [word for word in SMALL if not word.startswith("benchmark")]
    monkeypatch.setattr("alexlab.tasks.benchmark.train_words", lambda choices, own: [*words, "optimizer=sgd"])
    config = plain(*SMALL, "suite=startup", f"data.root={photographs}", name="benchmark")
    run(config, run_dir=tmp_path, choices=CHOICES)
    helps, steps = took
    assert helps["ours"][0] < steps["ours"][0]
    assert 0 < steps["bare"][0] < 120
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert [row["what"] for row in rows[-3:]] == [
        "--help",
        "to the first step",
        "between two epochs, without validation",
    ]


def test_memory_is_that_of_one_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(50_000_000); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.pid in children(os.getpid())
        assert 50 < private_mb(process.pid) < 80
        process.kill()
        process.wait()
        time.sleep(0.1)
        assert private_mb(process.pid) == 0.0


def test_what_is_asked_for_is_told() -> None:
    assert suites(None) == list(SUITES)
    assert suites(["epochs", "loader"]) == ["loader", "epochs"]
    with pytest.raises(ConfigError, match=r"suite must be null, for all, or one or several of loader, .*; got fits"):
        check({"suite": "fits"})
    with pytest.raises(ConfigError, match=r"benchmark\.pairs must be at least 1; got 0"):
        Settings(pairs=0)
    words = train_words({"model": "nin", "data": "folder", "debug": "None"}, ["model=nin", "suite=epochs", "seed=2"])
    assert words == ["model=nin", "data=folder", "seed=2"]
