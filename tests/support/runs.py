"""Composed configs, short runs, and readers for the files that runs leave."""

import copy
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from alexlab.cli import command
from alexlab.config import CONFIG_DIR

ROOT = Path(__file__).parents[2]
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
_plain: dict[Any, tuple[Any, dict[str, Any]]] = {}


def composed(*overrides: str, name: str = "train") -> Any:
    """The config of a command with Hydra's own node, as `hydra.main` composes it."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
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
