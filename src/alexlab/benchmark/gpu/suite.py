"""The parts of the suite `gpu`: checks first, then the measurements with the goals, then the others."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from alexlab.benchmark.gpu import checks, commands, epochs, steps
from alexlab.benchmark.gpu.config import GpuConfig
from alexlab.benchmark.gpu.context import GpuContext
from alexlab.benchmark.gpu.results import Results
from alexlab.benchmark.gpu.runner import Part, run_parts
from alexlab.distributed.devices import requested_gpus
from alexlab.distributed.hardware import describe_hardware
from alexlab.errors import ConfigError, FindingsError
from alexlab.records.provenance import CODE_DIR, code_state, versions
from alexlab.records.run import Run


def parts(context: GpuContext) -> list[Part]:
    """Return the chosen parts in order; their limits are several times the expected duration on an H100.

    Raises:
        ConfigError: if there is no part of a chosen name.
    """
    settings = context.settings
    known = [
        Part("machine", partial(steps.measure_machine, context), 60),
        Part("photographs", partial(write_photographs, context), 60),
        Part("one_step", partial(checks.check_steps, context), 80),
        Part("crops", partial(checks.check_crops, context), 40),
        Part("resume", partial(checks.check_resumed_runs, context), 60),
        Part("synchronization", partial(checks.check_synchronization, context), 40),
        Part("nan_stop", partial(checks.check_nan, context), 40),
        Part("commands", partial(commands.check_commands, context), 100),
        Part("epochs", partial(epochs.measure_epochs, context), 170),
        *(Part(f"steps_{net}", partial(steps.measure_steps, context, net), 110) for net in settings.nets),
        Part("compile", partial(checks.check_compilation, context), 90),
        Part("decoding", partial(epochs.measure_decoding, context), 40),
    ]
    names = [part.name for part in known]
    if settings.parts is not None and not set(settings.parts) <= set(names):
        raise ConfigError(f"gpu.parts must be null or a list of {', '.join(names)}; got {list(settings.parts)}")
    return [
        replace(part, limit_s=part.limit_s * settings.limit_scale)
        for part in known
        if settings.parts is None or part.name in settings.parts
    ]


def write_photographs(context: GpuContext) -> Iterator[dict[str, Any]]:
    """Write the photographs that all parts use."""
    context.write_photographs()
    yield {}


def run_suite(run: Run, config: Mapping[str, Any], train: Callable[[Run], Any]) -> Results:
    """Run all parts, writing gpu.json and gpu.md to the run folder after each of them, and return the results.

    Args:
        run: the benchmark.
        config: config of `train.py`.
        train: the task of `train.py`.

    Raises:
        ConfigError: if there is no CUDA device and the config does not ask for the CPU.
    """
    settings = GpuConfig(**run.config["gpu"])
    trainer = dict(config["trainer"])
    device = "cuda" if requested_gpus(accelerator=trainer["accelerator"], devices=trainer["devices"]) else "cpu"
    if device == "cpu" and trainer["accelerator"] != "cpu":
        raise ConfigError(
            "suite=gpu needs a CUDA device, and none was found; to try the suite on the CPU, add trainer.accelerator=cpu and "
            "the small sizes in tests/benchmark/test_gpu.py"
        )
    if trainer["precision"] == "auto":  # GPUs without bfloat16 are older than 2020
        trainer["precision"] = "bf16-mixed" if device == "cuda" else "32-true"
    results = Results(about(run), run.dir)
    work_dir = Path(tempfile.mkdtemp(prefix="alexlab_gpu_"))
    context = GpuContext(
        config={**config, "trainer": trainer},
        choices=run.choices,
        settings=settings,
        device=device,
        out_dir=run.dir,
        work_dir=work_dir,
        train=train,
    )
    try:
        run_parts(parts(context), results, total_s=settings.total_s)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return results


def about(run: Run) -> dict[str, Any]:
    """Return date, hardware, versions and settings, in the form that docs/generate.py reads."""
    return {
        "title": "On a GPU",
        "command": "make gpu",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": describe_hardware(),
        "versions": versions(),
        "code": code_state(CODE_DIR)[0],
        "seed": run.config["seed"],
        "config": run.config["gpu"],
    }


def raise_problems(results: Results) -> None:
    """Raise FindingsError if a check has failed or a part has not finished."""
    if results.problems:
        problems = "; ".join(results.problems)
        raise FindingsError(f"all checks must pass and all parts finish, see gpu.md; these did not: {problems}")
