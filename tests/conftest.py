"""What the tests share: small folders of images, composed configs, short runs."""

import copy
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from alexlab import command

# Ranks are forked from this process, and a process whose OpenMP threads have started cannot be forked.
torch.set_num_threads(1)
# A suite that a shell has started in the background, as a CI may, was told to ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
# An AlexNet that trains in a blink: every layer is there, none is wide.
TINY = (
    "model=alexnet",
    "model.widths=[4,8,8,8,8]",
    "model.fc_widths=[16]",
    "data=folder",
    "data.image_size=64",
    "data.batch_size=8",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",  # on every machine
    "trainer.max_epochs=1",
    "scheduler=constant",
)


IMAGES = {f"train/{name}": 8 for name in ("ant", "bee", "cat")} | {
    "val/ant": 4,
    "val/bee": 4,
    "val/cat": 3,
    "test/ant": 3,
    "test/bee": 2,
    "test/cat": 2,
}
_plain: dict[Any, tuple[Any, dict[str, Any]]] = {}


@pytest.fixture(autouse=True, scope="session")
def _registered() -> None:
    command.register()


@pytest.fixture(autouse=True)
def _unrehearsed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the rehearsal of each run out, which takes as long as training the tiny net."""
    if "rehearsed" not in request.keywords:
        monkeypatch.setattr("alexlab.tasks.train.rehearse", lambda config, splits, *, num_ranks: None)


def write_images(root: Path, counts: dict[str, int], *, size: int = 70, seed: int = 0) -> Path:
    """Writes `counts[folder]` images into each folder; the class is told by the brightness and one bright corner."""
    generator = np.random.default_rng(seed)
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        level = 60 * (sorted({Path(name).name for name in counts}).index(Path(folder).name) + 1)
        for index in range(count):
            pixels = generator.integers(0, 40, (size, size + number, 3)) + level
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / folder / f"{index:03d}.png")
    return root


def replace_unseen(path: Path) -> None:
    """Changes a byte of a file in place and sets its times back, as a copy that keeps times may do."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes: 24 training, 11 validation and 7 test images; the last two are odd on purpose."""
    return write_images(tmp_path_factory.mktemp("images"), IMAGES)


def composed(*overrides: str, name: str = "train") -> Any:
    """The config of a command with Hydra's own node, as `hydra.main` composes it."""
    with initialize_config_dir(str(command.CONFIG_DIR), version_base="1.3"):
        config = compose(name, [*overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


def plain(*overrides: str, name: str = "train") -> dict[str, Any]:
    """The composed config as a task gets it; composing takes longer than training the tiny net, so it is done once."""
    if (overrides, name) not in _plain:
        config = composed(*overrides, name=name)
        own = config.copy()
        del own.hydra
        _plain[overrides, name] = config, command.plain(own)
    config, found = _plain[overrides, name]
    HydraConfig.instance().set_config(config)
    return copy.deepcopy(found)


def trains_on(images: Path, folder: Path) -> Callable[..., float | None]:
    """Trains the tiny net on the images with overrides, in `folder/run` unless told otherwise."""

    def call(
        *overrides: str,
        run_dir: Path = folder / "run",
        isolated: bool = False,
        without: Sequence[str] = (),
        resumed: bool = False,
    ) -> float | None:
        from alexlab.tasks.train import run

        run_dir.mkdir(exist_ok=True)
        own = (f"data.root={images}", f"data.cache_dir={folder / 'cache'}")
        config = plain(*(word for word in TINY if word not in without), *own, *overrides)
        choices = {"model": "alexnet", "optimizer": "adamw", "scheduler": "constant", "augmentation": "flip_crop"}
        return run(config, run_dir=run_dir, choices=choices, isolated=isolated, resumed=resumed)

    return call


@pytest.fixture
def train(images: Path, tmp_path: Path) -> Callable[..., float | None]:
    """`trains_on` the images of the session."""
    return trains_on(images, tmp_path)


def names(folder: Path) -> set[str]:
    """What a run has left in its folder, but for what every run leaves: its card, the lock, the changes of the code."""
    return {path.name for path in folder.iterdir()} - {"run.json", ".lock", "code.diff"}


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    import csv

    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def environment(**variables: str) -> dict[str, str]:
    """This environment without what a launcher may have left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "RANK", "WORLD"))}
    return kept | variables


def scalars(folder: Path) -> dict[str, list[float]]:
    """The scalars of the one event file in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = list(folder.glob("events.out.tfevents.*"))
    assert len(files) == 1, json.dumps([str(file) for file in files])
    events = EventAccumulator(str(files[0]))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


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
