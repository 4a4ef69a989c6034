"""Fixtures that tests of several rooms use."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexlab.cli import command
from support.images import IMAGES, write_images
from support.runs import TINY, plain, trains_on

# Ranks are forked from this process, and a process whose OpenMP threads have started cannot be forked.
torch.set_num_threads(1)
# A suite that a shell has started in the background, as a CI may, was told to ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _registered() -> None:
    command.register()


@pytest.fixture(autouse=True)
def _unrehearsed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the rehearsal of each run out, which takes as long as training the tiny net."""
    if "rehearsed" not in request.keywords:
        monkeypatch.setattr("alexlab.tasks.train.rehearse", lambda config, splits, *, num_ranks: None)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes: 24 training, 11 validation and 7 test images; the last two are odd on purpose."""
    return write_images(tmp_path_factory.mktemp("images"), IMAGES)


@pytest.fixture
def train(images: Path, tmp_path: Path) -> Callable[..., float | None]:
    """`trains_on` the images of the session."""
    return trains_on(images, tmp_path)


@pytest.fixture(scope="session")
def trained_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the tiny net after three epochs; its checkpoints are the input of what follows a training."""
    from alexlab.tasks.train import run

    folder = tmp_path_factory.mktemp("trained")
    run_dir = folder / "run"
    run_dir.mkdir()
    words = (
        *TINY,
        f"data.root={images}",
        f"data.cache_dir={folder / 'cache'}",
        "trainer.max_epochs=3",
        "model.norm=batch",
    )
    run(plain(*words), run_dir=run_dir, choices={"model": "alexnet"})
    return run_dir
