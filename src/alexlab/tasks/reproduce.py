"""Task of `python src/reproduce.py`: train what the claims of a paper need, and write one page with the results."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from alexlab.distributed.imports import import_lightning
from alexlab.distributed.signals import INTERRUPTED, PREEMPTED, Interrupted
from alexlab.errors import AlexlabError, ConfigError
from alexlab.output.command_line import short_path
from alexlab.output.escape import print_line
from alexlab.output.numbers import counted
from alexlab.records.layout import LAUNCHER_OVERRIDES, outputs_dir
from alexlab.records.record import FINISHED
from alexlab.records.run import Run

MAX_JOBS = 8  # runs at a time on a CPU

if TYPE_CHECKING:
    from alexlab.papers.paper import PaperRun
    from alexlab.papers.reproduction import Reproduction


def main(run: Run) -> None:
    """Train, resuming an earlier call, and write `reproduce.html`, `claims.csv` and `result.json`.

    Raises:
        AlexlabError: if an option is invalid, the folder has runs of other settings or images, or a run could not be started or
            failed. In the last case the page is written before.
        Interrupted: if a signal stopped the training.
    """
    reproduction = make_reproduction(run)
    import_lightning()

    from alexlab.config.default import run_config
    from alexlab.papers.page import write_results

    for number, planned in enumerate((reproduction.first_runs, reproduction.later_runs)):
        reproduction.record(planned())  # refuses a folder with other settings
        if run.config["train"]:
            if number == 0:
                reproduction.check_recipes(run_config)
                reproduction.check_images()
            _train(reproduction, planned(), launcher_overrides(run, reproduction.memory_gb))
    page = write_results(reproduction)
    print_line(short_path(page))
    failed = reproduction.failed()
    if failed:
        names = ", ".join(each.name for each in failed[:3]) + (" and others" if len(failed) > 3 else "")
        raise AlexlabError(
            f"{counted(len(failed), 'run')} failed: {names}; repeat the command with launcher.retry_failed=true to retry them"
        )


def make_reproduction(run: Run) -> "Reproduction":
    """Return the reproduction that a config describes.

    Raises:
        ConfigError: if a value is invalid.
    """
    from alexlab.papers.paper import SCALES, make_paper, select_claims
    from alexlab.papers.reproduction import Reproduction

    config, name = run.config, run.choices["paper"]
    if config["scale"] not in SCALES:
        raise ConfigError(f"scale must be one of {', '.join(SCALES)}; got {config['scale']}")
    if not isinstance(config["seeds"], int) or config["seeds"] < 1:
        raise ConfigError(f"seeds must be the number of runs per setting, at least 1; got {config['seeds']}")
    paper = make_paper(config["paper"])
    roots = {key: config[key]["root"] for key in ("data", "cifar10")}
    for key, root in roots.items():
        if root is not None and not os.path.exists(root):
            raise ConfigError(f"{key}.root must be a folder of images; {root} does not exist")
    folder = config["out"] or outputs_dir() / "reproduce" / f"{name}-{config['scale']}"
    found = Reproduction(
        paper,
        select_claims(paper, config["claims"]),
        config["scale"],
        config["seeds"],
        {key: root and os.path.abspath(root) for key, root in roots.items()},
        Path(folder),
    )
    if not found.trained_claims:
        keys = sorted({setting.root for setting in paper.recipes.values()})
        raise ConfigError(f"the claims need images: set {' or '.join(f'{key}.root=DIR' for key in keys)}")
    return found


def launcher_overrides(run: Run, memory_gb: float) -> list[str]:
    """Return the overrides that choose where the runs are trained: those of the command, else as many at a time as fit.

    That is one per GPU, or one per core up to MAX_JOBS, because most nets of the papers do not use several cores well.

    Args:
        run: the command.
        memory_gb: memory of a run on a CPU.
    """
    from alexlab.distributed import hardware
    from alexlab.distributed.devices import num_gpus

    option = run.choices["launcher"]
    given = [override for override in run.overrides if override.startswith(LAUNCHER_OVERRIDES)]
    others = [override for override in given if not override.startswith("launcher=")]
    if option == "parallel" and not any(override.startswith("launcher.jobs=") for override in given):
        fitting = int(hardware.describe_hardware()["memory_gb"] / memory_gb)
        others.append(f"launcher.jobs={num_gpus() or max(1, min(MAX_JOBS, fitting, hardware.num_cores()))}")
    return [f"launcher={option}", *others]


def _num_parallel(launcher: list[str]) -> int:
    """Return the number of runs at a time, 1 if `launcher.jobs` gives none."""
    jobs = ["1", *(item.partition("=")[2] for item in launcher if item.startswith("launcher.jobs="))][-1]
    return max(1, int(jobs)) if jobs.isdecimal() else 1


def _train(reproduction: "Reproduction", runs: "list[PaperRun]", launcher: list[str]) -> None:
    """Train the runs that are not finished.

    Raises:
        Interrupted: if a signal stopped it, after printing how to resume.
        AlexlabError: with the exit code of the training if no run was started.
    """
    from alexlab.papers.training import describe, state_of, train

    states = state_of(runs, reproduction.runs_dir)
    if all(run is not None and run.status == FINISHED for run in states.values()):
        return
    print_line(f"{short_path(reproduction.folder)}: {describe(states, runs, _num_parallel(launcher))}")
    code = train(runs, reproduction.runs_dir, launcher)
    if code in (INTERRUPTED, PREEMPTED):
        print_line("every run has saved its last checkpoint; repeat the command to resume and to update the page")
        raise Interrupted(signal.SIGINT if code == INTERRUPTED else signal.SIGTERM)
    if code and not any(state_of(runs, reproduction.runs_dir).values()):
        error = AlexlabError("no run could be started; the reason is above")
        error.exit_code = code
        raise error
