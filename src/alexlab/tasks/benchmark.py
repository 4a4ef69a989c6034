"""Task of `python src/benchmark.py`: interleaved measurements of this package and of alternatives."""

import importlib
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexlab.config.instantiate import bind
from alexlab.distributed.imports import import_lightning
from alexlab.errors import ConfigError
from alexlab.output.command_line import short_path
from alexlab.output.escape import print_line
from alexlab.records.run import Run
from alexlab.tasks import train

if TYPE_CHECKING:
    from alexlab.benchmark.context import BenchmarkContext

SUITES = ("loader", "step", "epochs", "startup", "scaling", "memory")
GROUPS = ("model", "data", "augmentation", "loss", "optimizer", "scheduler", "trainer")
OWN_KEYS = ("suite", "peer", "benchmark", "gpu")
# Keys of `data` that choose images or splits; the subset is a manifest, which has them already.
WHOLE = {
    **dict.fromkeys(("group", "folds", "fold", "manifest")),
    "fraction": 1.0,
    "test_fraction": 0.0,
    "val_split": "val",
}
SMAPS = Path("/proc/self/smaps_rollup")  # Linux
GPU = "gpu"  # a suite of its own, which runs only alone


def main(run: Run) -> None:
    """Run the suites, print a table and write benchmark.json, benchmark.md and benchmark.png, or gpu.json and gpu.md.

    Raises:
        AlexlabError: if the config cannot be trained or a candidate fails; FindingsError if a check of the suite `gpu` fails.
    """
    import_lightning()

    from alexlab.benchmark import table
    from alexlab.benchmark.roofline import measure_ceilings
    from alexlab.output.terminal import Terminal

    names = suites(run.config["suite"])
    if names == [GPU]:
        _run_gpu_suite(run)
        return
    context = _context(run)
    about = _about(run, context)
    try:
        ceilings = measure_ceilings(context.device, num_rounds=context.settings.pairs, log_dir=run.dir / "logs")
        rows = list(ceilings)
        for name in names:
            rows += importlib.import_module(f"alexlab.benchmark.{name}").suite(context)
            table.write(rows, about, run.dir)  # keep the finished suites if a later one fails
    finally:
        shutil.rmtree(context.config["data"]["cache_dir"], ignore_errors=True)
    Terminal().print_table(table.table(rows, _title(about)))
    print_line(short_path(run.dir / "benchmark.json"))


def _run_gpu_suite(run: Run) -> None:
    """Run the suite `gpu` without rehearsing the config: each of its parts may fail alone."""
    from alexlab.benchmark.gpu.config import GpuConfig
    from alexlab.benchmark.gpu.suite import raise_problems, run_suite
    from alexlab.training.console import quiet_lightning

    bind(GpuConfig, "gpu", **run.config["gpu"])
    quiet_lightning()
    results = run_suite(run, _train_config(run.config), train.main)
    print_line(short_path(run.dir / "gpu.md"))
    raise_problems(results)


def _train_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of `train.py` within that of the benchmark."""
    return {key: value for key, value in config.items() if key not in OWN_KEYS}


def _context(run: Run) -> "BenchmarkContext":
    """Return the arguments of the suites, after checking that the config can be trained."""
    from alexlab.benchmark.config import BenchmarkConfig
    from alexlab.benchmark.context import BenchmarkContext
    from alexlab.config import build_data
    from alexlab.config.data import data_config
    from alexlab.config.rehearsal import rehearse
    from alexlab.config.resolve import resolve_auto
    from alexlab.config.validate import check_objects
    from alexlab.distributed.devices import num_ranks, requested_gpus
    from alexlab.distributed.launch import Limits, launch
    from alexlab.training.console import quiet_lightning

    bind(BenchmarkConfig, "benchmark", **run.config["benchmark"])
    settings = BenchmarkConfig(**run.config["benchmark"])
    quiet_lightning()
    config = _on_subset(run, settings)
    requested = {name: config["trainer"][name] for name in ("accelerator", "devices")}
    device, ranks = "cuda" if requested_gpus(**requested) else "cpu", num_ranks(**requested)
    # In a child process: querying the precisions of a GPU initializes CUDA, and this process could no longer be forked.
    resolve = partial(resolve_auto, config["trainer"])
    config["trainer"] = launch(resolve, num_ranks=1, isolated=True, limits=Limits(**config["elastic"]))
    splits = data_config(config).find_splits()
    check_objects(config, splits, num_ranks=ranks)
    rehearse(config, splits, num_ranks=ranks)
    return BenchmarkContext(
        config=config,
        choices=run.choices,
        # An experiment may set it.
        overrides=[*train_overrides(run.choices, run.overrides), f"data.val_split={WHOLE['val_split']}"],
        settings=settings,
        splits=build_data.packed_splits(config, splits),
        device=device,
        num_ranks=ranks,
        out_dir=run.dir.resolve(),
        train=train.main,
        peer=run.config["peer"],
    )


def _on_subset(run: Run, settings: Any) -> dict[str, Any]:
    """Return the config of `train.py` on a subset of the images, with its statistics filled in."""
    from alexlab.benchmark.config import write_subset
    from alexlab.config.data import data_config
    from alexlab.config.resolve import fill_statistics
    from alexlab.data.layout import SPLITS

    for name in ("url", "dataset"):
        if run.config["data"].get(name) is not None:
            raise ConfigError(
                f"the benchmark needs image files, data.root=DIR; got data.{name}={run.config['data'][name]}"
            )
    splits = data_config(run.config).find_splits()
    manifest = write_subset(splits, settings.train_images, settings.val_images, run.dir / "images.csv")
    data = {
        **run.config["data"],
        "root": str(manifest.resolve()),
        "generate": None,
        "splits": dict.fromkeys(SPLITS),
        **WHOLE,  # the manifest has splits
        "cache_dir": str(run.dir.resolve() / "cache"),
    }
    return fill_statistics({**_train_config(run.config), "data": data}, splits)[0]


def _about(run: Run, context: "BenchmarkContext") -> dict[str, Any]:
    """Return the environment of the measurements, for benchmark.json."""
    from alexlab.distributed.hardware import describe_hardware
    from alexlab.records.provenance import CODE_DIR, code_state, versions

    return {
        "hardware": describe_hardware(),
        "versions": versions(),
        "device": context.device,
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "code": code_state(CODE_DIR)[0],
        "choices": dict(run.choices),
        "config": context.config,
        "settings": run.config["benchmark"],
    }


def suites(names: str | list[str] | None) -> list[str]:
    """Return the suites that `suite=` names, in the order in which they run."""
    measured = [name for name in SUITES if name != "memory" or SMAPS.exists()]
    wanted = measured if names is None else [names] if isinstance(names, str) else list(names)
    if wanted == [GPU]:
        return wanted
    if not wanted or not set(wanted) <= set(SUITES):
        raise ConfigError(f"suite must be null, for all, one or several of {', '.join(SUITES)}, or {GPU}; got {names}")
    if not set(wanted) <= set(measured):
        raise ConfigError("suite=memory needs Linux, where /proc lists the memory of processes")
    return [name for name in SUITES if name in wanted]


def train_overrides(choices: Mapping[str, str], overrides: Sequence[str]) -> list[str]:
    """Return the overrides with which `train.py` trains the benchmarked config."""
    groups = [f"{group}={choices[group]}" for group in GROUPS if choices.get(group) not in (None, "None")]
    selected = {override.split("=")[0] for override in groups}
    keys = ((override.split("=")[0], override) for override in overrides)
    dropped = ("data.splits.", *(f"data.{name}" for name in WHOLE))  # the images are those of a manifest
    return [
        *groups,
        *(
            override
            for key, override in keys
            if key.split(".")[0] not in OWN_KEYS and key not in selected and not key.startswith(dropped)
        ),
    ]


def check(config: dict[str, Any]) -> None:
    """Raise ConfigError if `suite` is invalid."""
    suites(config["suite"])


def _title(about: dict[str, Any]) -> str:
    hardware, versions = about["hardware"], about["versions"]
    return f"{hardware['cores']} cores of {hardware['cpu']}, {about['device']}, torch {versions['torch']}"
