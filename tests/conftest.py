"""Fixtures shared by several rooms."""

import gc
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexlab.cli.hydra_state import register
from support.images import IMAGES, write_images
from support.runs import TINY, plain, trains_on

# Ranks are forked from this process, which is safe only before its OpenMP threads have started.
torch.set_num_threads(1)
# Exporters register devices, and an autograd engine that starts after that has threads, which a forked rank cannot use.
torch.ones(1, requires_grad=True).sum().backward()
# A shell that starts the suite in the background, as a CI may, makes it ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that train as slow, start with the slow files, and report scenarios to `make chaos` by JUnit properties."""
    for item in items:
        if {"train", "trained_run"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        item.user_properties += [("scenario", mark.kwargs["name"]) for mark in item.iter_markers("scenario")]
    # Of two processes neither should get a long file when the other one is done.
    items.sort(key=lambda item: not _is_slow_file(item))


def pytest_unconfigure() -> None:
    """Otherwise nanobind, which Triton uses, reports the frozen objects as leaks."""
    gc.unfreeze()


def _is_slow_file(item: pytest.Item) -> bool:
    module = item.getparent(pytest.Module)
    marks = getattr(module.obj, "pytestmark", []) if module is not None else []
    return any(mark.name == "slow" for mark in (marks if isinstance(marks, list) else [marks]))


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """Exclude what exists from garbage collections: each run has one, and each process forked from a large one another."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _registered() -> None:
    register()


@pytest.fixture(autouse=True)
def _unrehearsed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the rehearsal before each run: it takes as long as training the tiny net."""
    if "rehearsed" not in request.keywords:
        monkeypatch.setattr("alexlab.config.preflight.rehearse", lambda config, splits, *, num_ranks: None)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes: 24 training, 11 validation and 7 test images; 11 and 7 do not divide evenly among ranks."""
    return write_images(tmp_path_factory.mktemp("images"), IMAGES)


@pytest.fixture
def train(images: Path, tmp_path: Path) -> Callable[..., float | None]:
    """A function that trains the tiny net on the session's images."""
    return trains_on(images, tmp_path)


@pytest.fixture(scope="session")
def trained_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the tiny net after three epochs, for tests that need checkpoints only."""
    from alexlab.records.run import Run
    from alexlab.tasks.train import main

    folder = tmp_path_factory.mktemp("trained")
    run_dir = folder / "run"
    run_dir.mkdir()
    overrides = (
        *TINY,
        f"data.root={images}",
        f"data.cache_dir={folder / 'cache'}",
        "trainer.max_epochs=3",
        "model.norm=batch",
    )
    main(Run(config=plain(*overrides), dir=run_dir, choices={"model": "alexnet"}))
    return run_dir
