"""Training of the runs of a reproduction: a sweep of `train.py` in a process of its own, because it forks its jobs."""

import math
import os
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alexlab.config.grammar import quote_path
from alexlab.distributed.imports import python_path
from alexlab.output.command_line import repeated_options
from alexlab.output.numbers import counted
from alexlab.papers.paper import PaperRun
from alexlab.records.record import FINISHED
from alexlab.records.results import RunResult, find_run
from alexlab.sweeps.job_list import write_jobs


def train(runs: Sequence[PaperRun], runs_dir: Path, launcher: Sequence[str]) -> int:
    """Train runs, skipping finished ones and resuming interrupted ones, and return the exit code.

    A failed run does not stop the others. Ctrl-C, SIGTERM and SIGHUP are passed on, so that each running job saves a checkpoint.

    Args:
        runs: the runs.
        runs_dir: folder of the sweep.
        launcher: overrides of the launcher.
    """
    write_jobs(runs_dir, [run.job() for run in runs])
    folder = quote_path(str(runs_dir))
    sys.stdout.flush()  # what was printed comes before the output of the new process, also in a file
    with (
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "alexlab",
                "train",
                *repeated_options(),
                "-m",
                "hydra/sweeper=list",
                f"hydra.sweep.dir={folder}",
                *launcher,
            ],
            env={**os.environ, "PYTHONPATH": python_path()},
            start_new_session=True,  # so that Ctrl-C reaches it once, from here
        ) as process,
        _signals_to(process),
    ):
        return process.wait()


@contextmanager
def _signals_to(process: "subprocess.Popen[Any]") -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # SIGHUP under nohup
                signal.signal(number, lambda number, _: process.send_signal(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def state_of(runs: Sequence[PaperRun], runs_dir: Path) -> dict[str, RunResult | None]:
    """Return each run by name, None for one that was not started."""
    return {run.name: find_run(runs_dir / run.name, with_epochs=False) for run in runs}


def describe(states: Mapping[str, RunResult | None], runs: Sequence[PaperRun], num_parallel: int) -> str:
    """Return how many runs have ended, and how long the others take at the speed of the finished ones.

    Args:
        states: the runs by name, from `state_of`.
        runs: the runs that are planned.
        num_parallel: number of runs at a time.
    """
    counts = Counter("not started" if run is None else run.status for run in states.values())
    text = ", ".join([counted(len(runs), "run"), *(f"{count} {status}" for status, count in sorted(counts.items()))])
    elapsed = {name: run.elapsed_s or 0 for name, run in states.items() if run is not None and run.status == FINISHED}
    if not elapsed or len(elapsed) == len(runs):
        return text
    by_setting: dict[str, list[float]] = {}
    for run in runs:
        if run.name in elapsed:
            by_setting.setdefault(run.setting, []).append(elapsed[run.name])
    usual = statistics.fmean(elapsed.values())
    left = [run.setting for run in runs if run.name not in elapsed]
    left_s = sum(statistics.fmean(by_setting.get(setting, [usual])) for setting in left) / num_parallel
    return f"{text}; about {math.ceil(left_s / 60)} min left at the speed of the finished runs"
