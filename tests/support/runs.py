"""Composed configs, short runs, and readers of their output files."""

import copy
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from alexlab.cli.task import to_plain
from alexlab.config import CONFIG_DIR

ROOT = Path(__file__).parents[2]
# An AlexNet that trains in milliseconds: it has every layer, with few channels.
TINY = (
    "model=alexnet",
    "model.widths=[4,8,8,8,8]",
    "model.fc_widths=[16]",
    "data=folder",
    "data.image_size=64",
    "data.batch_size=8",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",  # so that a CPU with bfloat16 instructions gives the same numbers
    "trainer.max_epochs=1",
    "scheduler=constant",
    "callbacks.epochs.curves=false",  # drawing takes longer than training
)
_plain: dict[Any, tuple[Any, dict[str, Any]]] = {}


def composed(*overrides: str, name: str = "train") -> Any:
    """Return the config of a command, including the `hydra` node, as `hydra.main` composes it."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose(name, [*overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


def plain(*overrides: str, name: str = "train") -> dict[str, Any]:
    """Return the config that a task receives. Cached: composing takes longer than training the tiny net."""
    if (overrides, name) not in _plain:
        config = composed(*overrides, name=name)
        without_hydra = config.copy()
        del without_hydra.hydra
        _plain[overrides, name] = config, to_plain(without_hydra)
    config, result = _plain[overrides, name]
    HydraConfig.instance().set_config(config)
    return copy.deepcopy(result)


def trains_on(images: Path, folder: Path) -> Callable[..., float | None]:
    """Return a function that trains the tiny net on `images`, by default in `folder/run`.

    Its `without` lists overrides of `TINY` to leave out.
    """

    def call(
        *overrides: str,
        run_dir: Path = folder / "run",
        isolated: bool = False,
        without: Sequence[str] = (),
        resumed: bool = False,
    ) -> float | None:
        from alexlab.records.run import Run
        from alexlab.tasks.train import main

        run_dir.mkdir(exist_ok=True)
        data = (f"data.root={images}", f"data.cache_dir={folder / 'cache'}")
        config = plain(*(override for override in TINY if override not in without), *data, *overrides)
        choices = {"model": "alexnet", "optimizer": "adamw", "scheduler": "constant", "augmentation": "flip_crop"}
        return main(Run(config=config, dir=run_dir, choices=choices, isolated=isolated, resumed=resumed))

    return call


def write_record(folder: Path, *, top1: float | None = 0.5, tags: Sequence[str] = (), start_s: float = 1e9, **entries: Any) -> Path:  # fmt: skip
    """Write the run.json of a finished run that took 90 seconds, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "status": "finished",
        "config": {"tags": [*tags], "seed": 1, "trainer": {"max_epochs": 20}},
        "choices": {"model": "alexnet"},
        "attempts": [{"command": [], "start_s": start_s, "elapsed_s": 90.0}],
        "best": {} if top1 is None else {"top1": top1, "epoch": 4},
        "last": {} if top1 is None else {"epoch": 20},
        "scores": {} if top1 is None else {"test/top1": top1},
    }
    (folder / "run.json").write_text(json.dumps(record | entries))
    return folder


def names(folder: Path) -> set[str]:
    """Return the names in a run folder, without those in every run folder: record, lock and code diff."""
    return {path.name for path in folder.iterdir()} - {"run.json", ".lock", "code.diff"}


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    import csv

    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def environment(**variables: str) -> dict[str, str]:
    """Return the environment without the variables of a launcher, plus `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "RANK", "WORLD"))}
    return kept | variables


def scalars(folder: Path) -> dict[str, list[float]]:
    """Return the scalars of the only event file in a folder, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = list(folder.glob("events.out.tfevents.*"))
    assert len(files) == 1, json.dumps([str(file) for file in files])
    events = EventAccumulator(str(files[0]))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
