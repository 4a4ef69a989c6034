"""Runs and sweeps for Python programs: `alexlab.train`, `alexlab.sweep` and `alexlab.runs`."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import alexlab
from alexlab.cli.arguments import PATH_KEYS, TEXT_KEY
from alexlab.cli.env_file import read_env_file
from alexlab.config.grammar import expand_home, to_text
from alexlab.distributed.consistency import flatten
from alexlab.distributed.imports import python_path
from alexlab.errors import AlexlabError, ConfigError, DataError, NumericError, RankError
from alexlab.output.numbers import counted
from alexlab.records.find import find_runs
from alexlab.records.layout import OUTPUTS, RUN_JSON, outputs_dir
from alexlab.records.ranking import rank_groups, verdict
from alexlab.records.report import write_report
from alexlab.records.results import RunResult, best_run, obstacle, read_run, read_runs
from alexlab.records.run_groups import group_seeds
from alexlab.records.settings import differing_keys, result_rows
from alexlab.sweeps.entries import to_override

if TYPE_CHECKING:
    from alexlab.api.model import Model

Overrides: TypeAlias = str | Mapping[str, Any]

ERRORS = {error.exit_code: error for error in (ConfigError, DataError, NumericError, RankError)}
INTERRUPTED = 130  # 128 + SIGINT


@dataclass(frozen=True, repr=False)
class TrainedRun(RunResult):
    """A run that `train.py`, `train` or `sweep` has written.

    Args:
        config_dir: folder of your own code that `load` needs.
    """

    config_dir: str | Path | None = None

    def __repr__(self) -> str:
        text = "" if self.best_score is None else f", {self.optimized.name} {self.best_score:.4f}"
        return f"<alexlab.TrainedRun {self.folder}, {self.status}{text}>"

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run, plain data."""
        config: dict[str, Any] = self.record["config"]
        return config

    @property
    def scores(self) -> dict[str, float]:
        """The scores at the end of the run by name, such as `best/top1` and `test/top1`; empty if it did not finish."""
        return dict(self.record["scores"])

    @property
    def history(self) -> list[dict[str, float]]:
        """One row per epoch, counted from 1: the columns of `metrics.csv`."""
        return list(self.epochs)

    def load(self, *, device: str = "auto") -> "Model":
        """Return the model of the best epoch, see `alexlab.load`."""
        return alexlab.load(self.folder, device=device, config_dir=self.config_dir)


class Runs(Sequence[TrainedRun]):
    """Runs of a sweep, or those that `alexlab.runs` has found.

    Args:
        results: the runs.
        config_dir: folder of your own code that they need.
    """

    def __init__(self, results: Sequence[RunResult], *, config_dir: str | Path | None = None) -> None:
        # Absolute: the program may change its folder.
        results = [replace(result, folder=result.folder.absolute()) for result in results]
        known = [{field.name: getattr(result, field.name) for field in fields(RunResult)} for result in results]
        folder = None if config_dir is None else Path(config_dir).expanduser().absolute()
        self._runs = [TrainedRun(**values, config_dir=folder) for values in known]

    def __getitem__(self, index: Any) -> Any:
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[TrainedRun]:
        return iter(self._runs)

    def __repr__(self) -> str:
        return "\n".join([counted(len(self), "run"), *map(repr, self._runs)])

    @property
    def best(self) -> TrainedRun:
        """The run with the best value of the optimized metric; of equal ones that with the lower loss.

        Raises:
            DataError: if no run has been validated, or the runs have different optimized metrics or classes.
        """
        found = best_run(self._runs)
        if found is not None:
            return found
        if reason := obstacle([run for run in self._runs if run.best_score is not None]):
            raise DataError(f"the best run needs runs that can be ranked; these have {reason}")
        raise DataError("the best run needs a validated run; none of these has scores")

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per run: the config keys that differ between the runs, the scores, status and folder."""
        return result_rows(self._runs)

    def to_pandas(self) -> Any:
        """Return `rows` as a pandas DataFrame.

        Raises:
            ConfigError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ConfigError("to_pandas needs pandas: pip install pandas; rows() works without it") from error
        return pd.DataFrame(self.rows())

    def verdict(self) -> str:
        """Return whether one setting is the best, as the report does: runs that differ only in their seed are one setting."""
        return verdict(rank_groups(group_seeds(self._runs, differing_keys(self._runs))))

    def report(self, folder: str | Path) -> Path:
        """Write `report.html`, `report.md`, `report.csv` and plots to a folder; return the path of the page."""
        return write_report([str(run.folder) for run in self._runs], Path(expand_home(folder)))


def train(*overrides: Overrides, config_dir: str | Path | None = None) -> TrainedRun:
    """Train as `python src/train.py` does, on any number of devices, and return the run.

    The command runs in a process of its own, because it forks ranks, which is not safe in a program that has used PyTorch. Its
    output is printed; Ctrl-C or the stop button of a notebook stops it after the current step, with a checkpoint.

    Args:
        overrides: `"KEY=VALUE"` as on the command line, or dicts, whose keys may be nested:
            `train("model=alexnet_half", {"data.root": folder, "optimizer": {"lr": 0.1}})`.
        config_dir: folder of your own parts, as with `--config-dir`. Naming it trusts its code.

    Raises:
        AlexlabError: with the message of the command.
        KeyboardInterrupt: if the run was interrupted.
    """
    folder = _run_command([*_flag(config_dir), *_to_arguments(overrides)])
    return Runs([read_run(folder)], config_dir=config_dir)[0]


def sweep(*overrides: Overrides, config_dir: str | Path | None = None) -> Runs:
    """Train one run per combination of values, as `python src/train.py -m` does. A failed run does not stop the others.

    Args:
        overrides: as for `train`, except that a list in a dict has the values of a key, one per run:
            `sweep({"optimizer.lr": [0.1, 0.01], "seed": [1, 2, 3]}, "model=alexnet_half")`. Strings may use Hydra's grammar,
            such as `"seed=range(3)"`.
        config_dir: folder of your own parts, as with `--config-dir`. Naming it trusts its code.

    Raises:
        AlexlabError: with the message of the command, if no run was started.
        KeyboardInterrupt: if the sweep was interrupted.
    """
    folder = _run_command([*_flag(config_dir), "-m", *_to_arguments(overrides, swept=True)])
    return runs(folder, config_dir=config_dir)


def runs(*patterns: str | Path, config_dir: str | Path | None = None) -> Runs:
    """Return the runs in folders, sorted by name.

    Args:
        patterns: run folders, folders that contain them at any depth, or globs of either; if none is given, `outputs`, the
            folder of all runs, or what ALEXLAB_OUTPUTS names in the environment or in `.env`.
        config_dir: folder of your own code, for the `load` of the runs that need it.

    Raises:
        ConfigError: if no run is found.
    """
    default = {**read_env_file(), **os.environ}.get(OUTPUTS) or outputs_dir()  # as the commands do
    found = find_runs([expand_home(pattern) for pattern in patterns or (default,)])
    return Runs(read_runs(found), config_dir=config_dir)


def _flag(config_dir: str | Path | None) -> list[str]:
    return [] if config_dir is None else [f"--config-dir={os.fspath(config_dir)}"]


def _to_arguments(overrides: Sequence[Overrides], *, swept: bool = False) -> list[str]:
    arguments: list[str] = []
    for override in overrides:
        if isinstance(override, str):
            arguments.append(override)
        elif isinstance(override, Mapping):
            arguments += (_to_argument(key, _to_plain(value), swept) for key, value in flatten(override))
        else:
            raise ConfigError(f"an override must be 'KEY=VALUE' or a dict; got {type(override).__name__}")
    return arguments


def _to_plain(value: Any) -> Any:
    """Return a value as plain data: paths as text, tuples as lists, numbers of NumPy as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple | range):
        return [_to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist"):
        return _to_plain(value.tolist())
    raise ConfigError(f"a value must be a str, path, number, bool, None, list or dict; got {type(value).__name__}")


def _to_argument(key: str, value: Any, swept: bool) -> str:
    if swept and isinstance(value, list):
        if not value:
            raise ConfigError(f"{key} must have at least one value to sweep over; got []")
        if key in (*PATH_KEYS, TEXT_KEY):  # their values are taken as typed up to a comma
            return f"{key}=choice({','.join(map(to_text, value))})"
        return to_override({"key": key, "choices": value})
    if key in PATH_KEYS and isinstance(value, str):
        return f"{key}={value}"
    return to_override({"key": key, "value": value})


def _run_command(arguments: Sequence[str]) -> Path:
    """Run `train.py` in a new process and return the folder of the run or sweep.

    Raises:
        AlexlabError: with the message of the command if it left no run, or its only run failed.
    """
    with tempfile.TemporaryDirectory() as parts, tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        result = Path(parts) / "folder"
        with subprocess.Popen(
            [sys.executable, "-m", "alexlab.api.child", str(result), "train", *arguments],
            env={**os.environ, "PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"},
            stdout=None if sys.__stdout__ is sys.stdout and os.isatty(1) else subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that Ctrl-C reaches it once, from here
        ) as process:
            code = _wait(process)
        errors.seek(0)
        messages = errors.read().strip()
        folder = Path(os.fsdecode(result.read_bytes())) if result.exists() else None
        if code == INTERRUPTED:
            raise KeyboardInterrupt("" if folder is None else f"{folder}: to continue, use resume={folder}")
        if code and (folder is None or "-m" not in arguments or not any(folder.glob(f"**/{RUN_JSON}"))):
            text = messages or _reason(folder) or f"train.py exited with code {code}"
            raise ERRORS.get(code, AlexlabError)(*text.splitlines())
        if messages:
            sys.stderr.write(f"{messages}\n")
        if folder is None:
            raise ConfigError(f"train needs overrides that start a run; got {' '.join(arguments)}")
        return folder


def _wait(process: "subprocess.Popen[str]") -> int:
    """Print the output of a command and return its exit code; an interruption is passed on to it."""
    while True:
        try:
            for line in process.stdout or ():
                sys.stdout.write(line)  # the command has escaped it
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


def _reason(folder: Path | None) -> str | None:
    """Return why the run of a folder failed, without the name of the exception."""
    reason = None if folder is None or not (folder / RUN_JSON).is_file() else read_run(folder).record.get("reason")
    return None if reason is None else str(reason).partition(": ")[2] or str(reason)
