"""`python src/benchmark.py`: this package beside others. Imports no torch at its top."""

import importlib
import os
import shutil
from collections.abc import Mapping
from functools import partial
from typing import Any

from alexlab.config.instantiate import bind
from alexlab.errors import ConfigError
from alexlab.output.escape import print_line
from alexlab.runs.run import Run

SUITES = ("loader", "step", "epochs", "startup", "scaling", "memory")
GROUPS = ("model", "data", "augmentation", "loss", "optimizer", "scheduler", "trainer")
OWN = ("suite", "peer", "benchmark")


def main(run: Run) -> None:
    """Measures, prints a table and writes benchmark.json, benchmark.md and benchmark.png.

    Raises:
        AlexlabError: in one sentence.
    """
    from alexlab.benchmark import table
    from alexlab.benchmark.config import BenchmarkConfig, write_subset
    from alexlab.benchmark.context import BenchmarkContext
    from alexlab.benchmark.roofline import measure_ceilings
    from alexlab.config import build
    from alexlab.config.rehearsal import rehearse
    from alexlab.config.resolve import fill_statistics, resolve_auto
    from alexlab.config.validate import check_objects
    from alexlab.data.config import DataConfig
    from alexlab.data.layout import SPLITS
    from alexlab.distributed.devices import num_ranks, requested_gpus
    from alexlab.distributed.hardware import describe_hardware
    from alexlab.distributed.launch import Limits, launch
    from alexlab.output.terminal import Terminal
    from alexlab.runs.provenance import CODE_DIR, code_state, versions
    from alexlab.training.console import quiet_lightning

    config = run.config
    names = suites(config["suite"])
    bind(BenchmarkConfig, "benchmark", **config["benchmark"])
    settings = BenchmarkConfig(**config["benchmark"])
    quiet_lightning()
    bind(DataConfig, "data", **config["data"])
    if config["data"].get("url") is not None:
        raise ConfigError(f"what is measured on must be files, data.root=DIR; got data.url={config['data']['url']}")
    found = DataConfig(**config["data"]).find_splits()
    listed = write_subset(found, settings.train_images, settings.val_images, run.dir / "images.csv")
    where = {
        "root": str(listed.resolve()),
        "generate": None,
        "splits": dict.fromkeys(SPLITS),
        "cache_dir": str(run.dir.resolve() / "cache"),
    }
    trained = {key: value for key, value in config.items() if key not in OWN}
    trained, _ = fill_statistics({**trained, "data": {**config["data"], **where}}, found)
    devices = {name: config["trainer"][name] for name in ("accelerator", "devices")}
    device, ranks = "cuda" if requested_gpus(**devices) else "cpu", num_ranks(**devices)
    # In a child: to ask a GPU what it computes in starts CUDA, after which this process could not be forked.
    ask, limits = partial(resolve_auto, trained["trainer"]), Limits(**config["elastic"])
    trained["trainer"] = launch(ask, num_ranks=1, isolated=True, limits=limits)
    splits = DataConfig(**trained["data"]).find_splits()
    check_objects(trained, splits, num_ranks=ranks)
    rehearse(trained, splits, num_ranks=ranks)

    try:
        results = measure_ceilings(device, num_rounds=settings.pairs, log_dir=run.dir / "logs")
        context = BenchmarkContext(
            config=trained,
            choices=run.choices,
            overrides=train_words(run.choices, list(run.overrides)),
            settings=settings,
            splits=build.packed_splits(trained, DataConfig(**trained["data"]).find_splits()),
            device=device,
            num_ranks=ranks,
            out_dir=run.dir.resolve(),
            peer=config["peer"],
        )
        about = {
            "hardware": describe_hardware(),
            "versions": versions(),
            "device": device,
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "code": code_state(CODE_DIR)[0],
            "choices": run.choices,
            "config": trained,
            "settings": config["benchmark"],
        }
        for name in names:
            results += importlib.import_module(f"alexlab.benchmark.{name}").suite(context)
            table.write(results, about, run.dir)  # what has been measured is not lost when a later suite fails
    finally:
        shutil.rmtree(trained["data"]["cache_dir"], ignore_errors=True)
    Terminal(width=None if Terminal().is_terminal else 200).print(table.table(results, _title(about)))
    print_line(os.path.relpath(run.dir / "benchmark.json"))


def suites(word: str | list[str] | None) -> list[str]:
    """The suites that `suite=` names, in their order."""
    wanted = list(SUITES) if word is None else [word] if isinstance(word, str) else list(word)
    unknown = [name for name in wanted if name not in SUITES]
    if unknown or not wanted:
        raise ConfigError(f"suite must be null, for all, or one or several of {', '.join(SUITES)}; got {word}")
    return [name for name in SUITES if name in wanted]


def train_words(choices: Mapping[str, str], words: list[str]) -> list[str]:
    """The command line of `train.py` that trains what is measured."""
    groups = [f"{group}={choices[group]}" for group in GROUPS if choices.get(group) not in (None, "None")]
    chosen = {word.split("=")[0] for word in groups}
    return [
        *groups,
        *(word for word in words if word.split("=")[0].split(".")[0] not in OWN and word.split("=")[0] not in chosen),
    ]


def check(config: dict[str, Any]) -> None:
    """Looks at what can be known before anything is measured."""
    suites(config["suite"])


def _title(about: dict[str, Any]) -> str:
    machine, versions = about["hardware"], about["versions"]
    return f"{machine['cores']} cores of {machine['cpu']}, {about['device']}, torch {versions['torch']}"
