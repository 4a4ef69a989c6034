"""The suites on datasets of all kinds: grey and tiny images, photographs, nested folders, few images, many classes."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from torch import nn

from alexlab.benchmark import first_step
from alexlab.benchmark.config import write_subset
from alexlab.benchmark.interleave import Candidate, Figures, Turn
from alexlab.data.discovery import find_splits
from alexlab.errors import ConfigError
from alexlab.records.run import Run
from alexlab.tasks.benchmark import SUITES, main
from support.runs import TINY, plain

pytestmark = pytest.mark.slow

SMALL = (
    *(override for override in TINY if not override.startswith("scheduler")),
    "data.batch_size=4",
    "benchmark.pairs=1",
    "benchmark.train_images=16",
    "benchmark.val_images=8",
    "benchmark.steps=1",
    "benchmark.loader_images=4",
    "benchmark.files=[10]",
    "benchmark.classes=[3]",
    "benchmark.workers=[0]",
    "benchmark.ranks=[1]",
    "benchmark.widths=[1.0]",
)


def write(
    root: Path, counts: dict[str, int], *, size: tuple[int, int] = (32, 32), mode: str = "RGB", suffix: str = "jpg"
) -> Path:
    """Write `counts[folder]` noisy images (width, height) into each folder."""
    generator = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for index in range(count):
            noise = generator.integers(0, 256, (*size[::-1], 3), np.uint8)
            Image.fromarray(noise).convert(mode).save(root / folder / f"{index:05d}.{suffix}")
    return root


def write_links(root: Path, num_files: int, *, num_classes: int) -> Path:
    """Write a dataset with one image per class, and hard links to it."""
    for folder in write(root, {f"{label:03d}": 1 for label in range(num_classes)}).iterdir():
        for index in range(1, num_files // num_classes):
            os.link(folder / "00000.jpg", folder / f"{index:05d}.jpg")
    return root


DIGITS = [str(number) for number in range(10)]
DATASETS: dict[str, Callable[[Path], Path]] = {
    "grey 28 x 28, train and test": lambda root: write(
        root,
        {f"{split}/{name}": 4 for split in ("train", "test") for name in DIGITS},
        size=(28, 28),
        mode="L",
        suffix="png",
    ),
    "colour 32 x 32, train alone": lambda root: write(root, {f"train/{name}": 5 for name in DIGITS}),
    "photographs of 500 x 375": lambda root: write(
        root, {f"{split}/{name}": 10 for split in ("train", "val") for name in ("cat", "dog")}, size=(500, 375)
    ),
    "nested folders": lambda root: write(
        root, {f"{name}/2026/{month}": 6 for name in ("a", "b") for month in ("may", "june")}
    ),
    "ten images": lambda root: write(root, {"a": 5, "b": 5}),
    "more classes than images of a batch or of the subset": lambda root: write(
        root, {f"{split}/{number:03d}": 2 for split in ("train", "val") for number in range(40)}
    ),
    "100,000 files": lambda root: write_links(root, 100_000, num_classes=100),
}


class TurnEnded(BaseException):
    """Raised in a candidate at the end of its turn."""

    def __init__(self, figures: Figures) -> None:
        self.figures = figures


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each candidate have one turn, in this process; leave out whole commands of ours and the limits of the machine."""

    def interleave(candidates: Sequence[Candidate], *, sample: Any = None, **options: Any) -> dict[str, list[Figures]]:
        results = {}
        for candidate in candidates:
            connection, _ = multiprocessing.Pipe()
            with pytest.raises(TurnEnded) as ended:
                candidate.run(Turn(connection.fileno()))
            results[candidate.name] = [ended.value.figures | ({} if sample is None else sample(os.getpid()))]
        return results

    def end_turn(turn: Turn, figures: Figures | None = None) -> None:
        if figures is not None:
            raise TurnEnded(figures)

    def run_command(command: Sequence[str]) -> None:
        if command[1] == first_step.__file__:
            first_step.main(*command[2:])
        for argument in command:
            if argument.startswith("+callbacks.step_times.path="):
                times = (str(time.time() + number) for number in range(1, 7))  # three per job
                Path(argument.partition("=")[2]).write_text("\n".join(times))

    def small_net(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * 14 * 14, num_classes))

    monkeypatch.setattr(Turn, "next", end_turn)
    monkeypatch.setattr(torchvision.models, "alexnet", small_net)
    monkeypatch.setattr("alexlab.benchmark.context.interleave", interleave)
    monkeypatch.setattr("alexlab.benchmark.commands.run_command", run_command)
    monkeypatch.setattr("alexlab.benchmark.startup.run_command", run_command)
    monkeypatch.setattr("alexlab.benchmark.roofline.MATRIX_SIZE", 64)
    monkeypatch.setattr("alexlab.benchmark.roofline.measure_ceilings", lambda *args, **options: [])
    monkeypatch.setattr("alexlab.benchmark.scaling.SETTLE_S", 0)
    monkeypatch.setattr("alexlab.benchmark.table._plot", lambda rows, path: None)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", DATASETS)
def test_every_suite_runs_on_every_kind_of_dataset(name: str, tmp_path: Path) -> None:
    root = DATASETS[name](tmp_path / "images")
    channels = 1 if "grey" in name else 3
    overrides = (*SMALL, f"data.root={root}", f"model.in_channels={channels}", f"data.cache_dir={tmp_path / 'cache'}")
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    main(Run(config=plain(*overrides, name="benchmark"), dir=out_dir, choices={"model": "alexnet"}))
    rows = json.loads((out_dir / "benchmark.json").read_text())["rows"]
    assert {row["suite"] for row in rows} == set(SUITES)
    for row in rows:
        assert min(row["values"]) > 0, row
        assert len(row["baseline_values"]) == (1 if row["baseline"] else 0), row


def test_the_subset_needs_a_class_with_validation_images(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/a": 3, "train/b": 2, "val/b": 1})
    splits = find_splits(str(root), val_fraction=0.2, test_fraction=0.0)
    message = (
        "benchmark.train_images must be large enough to include a class that has validation images; got 1 of 5 images"
    )
    with pytest.raises(ConfigError, match=message):
        write_subset(splits, 1, 1, tmp_path / "images.csv")
    subset = find_splits(
        str(write_subset(splits, None, None, tmp_path / "images.csv")), val_fraction=0.2, test_fraction=0.0
    )
    assert {name: len(split) for name, split in subset.items()} == {"train": 5, "val": 1}
