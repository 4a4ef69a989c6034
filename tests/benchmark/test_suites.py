"""Each suite on a tiny net: every candidate runs, and every row has its values."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alexlab.benchmark.config import BenchmarkConfig
from alexlab.benchmark.interleave import interleave
from alexlab.benchmark.memory import children, private_mb
from alexlab.errors import ConfigError
from alexlab.records.run import Run
from alexlab.tasks.benchmark import SUITES, check, main, suites, train_overrides
from support.images import write_images
from support.runs import TINY, plain

pytestmark = pytest.mark.slow

SMALL = (
    *(override for override in TINY if not override.startswith("scheduler")),
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


def run_suite(suite: str, photographs: Path, out_dir: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a suite by `measurement | baseline`."""
    config = plain(*SMALL, f"suite={suite}", f"data.root={photographs}", *overrides, name="benchmark")
    main(Run(config=config, dir=out_dir, choices=CHOICES))
    content = json.loads((out_dir / "benchmark.json").read_text())
    assert content["versions"]["torch"]
    assert content["hardware"]["cpu"]
    assert not (out_dir / "cache").exists(), "the packs are removed"
    for row in content["rows"]:
        assert len(row["values"]) == 2, row
        assert min(row["values"]) > 0, row
        assert len(row["baseline_values"]) == (2 if row["baseline"] else 0), row
    return {f"{row['what']} | {row['baseline']}": row for row in content["rows"]}


def test_loader(photographs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = run_suite("loader", photographs, tmp_path)
    assert [name for name in rows if "ImageFolder" in name] == [
        f"{source}: {recipe} | ImageFolder, Pillow, transforms v1: {recipe}"
        for source in ("from JPEG", "from shards", "packed")
        for recipe in ("random resized crop and flip", "resize, crop and flip")
    ]
    assert "machine" in capfd.readouterr().out


def test_step(photographs: Path, tmp_path: Path) -> None:
    rows = run_suite("step", photographs, tmp_path)
    assert {name.split(" | ")[1] for name in rows if name.startswith("alexnet")} >= {
        "the usual step: NCHW, default optimizer",
        "NCHW",
        "optimizer in a loop",
        "optimizer foreach",
        "memory given back",
    }
    first = next(row for name, row in rows.items() if name.startswith("alexnet"))
    assert first["limit"].endswith("% of matrix products")


def test_epochs(photographs: Path, tmp_path: Path) -> None:
    rows = run_suite("epochs", photographs, tmp_path, "data.cache=packed")
    for other in ("a bare loop", "stock Lightning", "torchvision's reference"):
        for what in ("whole epochs", "training", "validation"):
            assert f"{what}: alexnet, packed | {other}" in rows
    assert any(name.startswith("an atomic checkpoint") for name in rows)
    ours = tmp_path / "runs/ours_1"
    assert (ours / "checkpoints/best.ckpt").is_file()
    assert "train/loss" in (ours / "metrics.csv").read_text()


def test_epochs_on_two_ranks(photographs: Path, tmp_path: Path) -> None:
    rows = run_suite("epochs", photographs, tmp_path, "trainer.devices=2")
    assert "training: alexnet, JPEG, 2 ranks | stock Lightning, DDP" in rows


def test_scaling(photographs: Path, tmp_path: Path) -> None:
    rows = run_suite("scaling", photographs, tmp_path)
    for name in (
        "10 files: listed by a walk | torchvision's ImageFolder",
        "10 files: known from the index | torchvision's ImageFolder",
        "step, 5 classes | 3 classes",
        "step, width 2 | width 1",
        "loader, 1 DataLoader workers: alexnet, JPEG | 0 DataLoader workers",
        "training, 1 DataLoader workers: alexnet, JPEG | 0 DataLoader workers",
        "training, 2 ranks: alexnet, JPEG | 1 rank",
    ):
        assert name in rows, list(rows)
    assert not (tmp_path / "files").exists()


def test_memory(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexlab.benchmark.interleave.SAMPLE_S", 0.005)
    rows = run_suite("memory", photographs, tmp_path, "data.num_workers=1")
    row = rows["all processes: alexnet, packed | torchvision's reference"]
    main = rows["the process that trains: alexnet, packed | torchvision's reference"]
    worker = rows["a DataLoader worker: alexnet, packed | torchvision's reference"]
    # Pages shared after the fork count in equal parts, so that neither process need be the larger one.
    assert row["median"] > max(main["median"], worker["median"])
    assert min(main["median"], worker["median"]) > 0


def test_startup(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round without warm-up: a first step takes half a minute of imports."""
    time_once = partial(interleave, num_rounds=1, num_warmup=0)

    def once(candidates: Any, *, num_rounds: int, **options: Any) -> Any:
        return time_once(candidates, **options)

    monkeypatch.setattr("alexlab.benchmark.context.interleave", once)
    overrides = [override for override in SMALL if not override.startswith("benchmark")]
    monkeypatch.setattr("alexlab.tasks.benchmark.train_overrides", lambda choices, own: [*overrides, "optimizer=sgd"])
    config = plain(*SMALL, "suite=startup", f"data.root={photographs}", name="benchmark")
    main(Run(config=config, dir=tmp_path, choices=CHOICES))
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert [row["what"] for row in rows[-4:]] == [
        "--help",
        "to the first step",
        "between two jobs of a sweep",
        "between two epochs, without validation",
    ]
    help_s, first_step_s, between_jobs_s, _ = (row["median"] for row in rows[-4:])
    assert 0 < help_s < first_step_s
    assert 0 < between_jobs_s < first_step_s / 3
    assert 0 < rows[-3]["baseline_median"] < 120


def test_memory_of_one_process() -> None:
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


def test_unknown_suites_are_refused() -> None:
    assert suites(None) == list(SUITES)
    assert suites(["epochs", "loader"]) == ["loader", "epochs"]
    with pytest.raises(
        ConfigError, match=r"suite must be null, for all, one or several of loader, .*, or gpu; got fits"
    ):
        check({"suite": "fits"})
    with pytest.raises(ConfigError, match=r"benchmark\.pairs must be at least 1; got 0"):
        BenchmarkConfig(pairs=0)
    with pytest.raises(ConfigError, match=r"benchmark\.train_images must be at least 1; got -1"):
        BenchmarkConfig(train_images=-1)
    assert BenchmarkConfig(train_images=None).train_images is None
    overrides = train_overrides(
        {"model": "nin", "data": "folder", "debug": "None"},
        [
            "model=nin",
            "suite=epochs",
            "seed=2",
            "data.folds=5",
            "data.fold=0",
            "data.fraction=0.5",
            "data.splits.train=a",
        ],
    )
    assert overrides == ["model=nin", "data=folder", "seed=2"]
