"""Private memory of a DataLoader worker over ten epochs, which must not grow with the number of files."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexlab.benchmark.memory import children
from alexlab.config import build_data
from alexlab.config.data import data_config
from alexlab.config.trainer import build_trainer
from support.runs import TINY, plain

pytestmark = pytest.mark.slow

NUM_FILES = 100_000
BATCHES = 20  # of 64 random images per epoch, so that most pages of the list of files are read


def private_dirty_mb(pid: int) -> float:
    """Return the memory of a process that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024 / 1e6


def memory_of_epochs(
    root: Path, cache_dir: Path, *, num_epochs: int, paths: Callable[[Any], Sequence[str]] = lambda paths: paths
) -> list[float]:
    """Return the private memory of a DataLoader worker after each epoch, in MB.

    Args:
        root: folder of images.
        cache_dir: folder of the list of files.
        num_epochs: number of epochs.
        paths: replaces the paths of the training split.
    """
    overrides = (f"data.root={root}", f"data.cache_dir={cache_dir}", "data.batch_size=64", "data.num_workers=1")
    config = plain(*TINY, *overrides)
    splits = data_config(config).find_splits()
    splits = replace(splits, train=replace(splits.train, paths=paths(splits.train.paths)))
    data = build_data.datamodule(config, splits)
    data.trainer = build_trainer({**config, "callbacks": {}, "logger": {}}, cache_dir, num_ranks=1)
    before, found = set(children(os.getpid())), []
    data.start_workers()
    train, _ = data.forked_loaders
    (worker, _) = sorted(set(children(os.getpid())) - before)  # of the training, and of the validation
    for epoch in range(num_epochs):
        train.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for _ in zip(range(BATCHES), train, strict=False):
            pass
        found.append(private_dirty_mb(worker))
    data.stop_workers()
    return found


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hard links to one image per class."""
    root = tmp_path_factory.mktemp("many")
    for label in range(10):
        (root / f"{label}").mkdir()
        Image.fromarray(np.full((8, 8, 3), label, np.uint8)).save(root / f"{label}/00000.png")
        for index in range(1, NUM_FILES // 10):
            os.link(root / f"{label}/00000.png", root / f"{label}/{index:0100d}.png")
    return root


def test_the_memory_of_a_loader_process_does_not_grow_with_the_files_it_reads(many_files: Path, tmp_path: Path) -> None:
    """With a list of strings it does: counting references copies the pages that the process shares with its parent."""
    found = memory_of_epochs(many_files, tmp_path, num_epochs=10)
    assert found[-1] - found[0] < 3, (
        found
    )  # with 1.28 million files: 26.7 MB after one epoch, 27.3 MB after five and ten
    listed = memory_of_epochs(many_files, tmp_path, num_epochs=4, paths=list)
    assert listed[-1] - found[-1] > 4, (found, listed)
