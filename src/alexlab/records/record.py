"""Run record, `run.json`: the command, config, environment and outcome of a run.

The file is replaced atomically, so it is complete at any moment. A killed run leaves the status `running` with no process that
holds the folder's lock; readers report such a run as interrupted.
"""

import copy
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alexlab.errors import ConfigError
from alexlab.records.atomic import write_atomic
from alexlab.records.layout import CODE_DIFF, RUN_JSON
from alexlab.records.lock import lock_holder
from alexlab.records.optimized import is_optimized_metric
from alexlab.records.provenance import CODE_DIR, code_state, versions

RUNNING, FINISHED, PRUNED, FAILED, INTERRUPTED = "running", "finished", "pruned", "failed", "interrupted"
MAX_BYTES = 50_000_000  # of run.json
MAX_TIME_S = 1e11  # the year 5138: no number that a date cannot hold, and not NaN
MAX_DIFF_BYTES = 5_000_000  # of code.diff


class CorruptError(ConfigError):
    """Error for a corrupt run.json."""


def check_record(content: Any, path: Path) -> dict[str, Any]:
    """Return the content of a run.json, with defaults for entries that a run which ended early leaves out.

    Raises:
        CorruptError: if an entry is missing or has the wrong type; the file may be truncated or come from somebody else.
    """
    if not isinstance(content, dict):
        raise CorruptError(f"{path} is corrupt: it must hold an object; got {type(content).__name__}")
    for name, default in default_record().items():
        if content.get(name) is None:
            content[name] = default
    for name, (is_valid, expected) in SCHEMA.items():
        if not is_valid(content.get(name)):
            raise CorruptError(f"{path} is corrupt: {name} must be {expected}; got {str(content.get(name))[:100]!r}")
    return content


def _is_mapping(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(isinstance(item, kinds) and not isinstance(item, bool) for item in value.values())
        and all(abs(item) < 2**63 for item in value.values() if isinstance(item, int))
    )


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < MAX_TIME_S


def _are_attempts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(attempt, dict)
        and _is_time(attempt.get("start_s"))
        and _is_time(attempt.get("elapsed_s", 0))
        and isinstance(attempt.get("command", []), list)
        for attempt in value
    )


_numbers = _is_mapping(int, float)
STATES = (RUNNING, FINISHED, PRUNED, FAILED, INTERRUPTED)
DEFAULTS: dict[str, Any] = {
    "attempts": [],
    "choices": {},
    "scores": {},
    "best": {},
    "last": {},
    "data": {"counts": {}},
    "optimized": {"name": "val/top1", "mode": "max"},
    "versions": {},
    "code": {"commit": None, "dirty": False},
    "hardware": {"cpu": "unknown", "cores": "unknown"},
    "command": [],
    "seed": 0,
}
SCHEMA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "status": (lambda value: value in STATES, f"one of {', '.join(STATES)}"),
    "config": (lambda value: isinstance(value, dict), "an object"),
    "choices": (_is_mapping(str), "an object of strings"),
    "attempts": (_are_attempts, "a list of objects with start_s"),
    "command": (
        lambda value: isinstance(value, list) and all(isinstance(argument, str) for argument in value),
        "a list of strings",
    ),
    "scores": (_numbers, "an object of numbers"),
    "best": (_numbers, "an object of numbers"),
    "last": (_numbers, "an object of numbers"),
    "data": (
        lambda value: (
            isinstance(value, dict)
            and _numbers(value.get("counts", {}))
            and isinstance(value.get("class_names") or [], list)
        ),
        "an object with counts",
    ),
    "parameters": (lambda value: value is None or isinstance(value, int), "an integer"),
    "images_per_s": (lambda value: value is None or isinstance(value, int | float), "a number"),
    "gpus": (lambda value: value is None or isinstance(value, list), "a list"),
    "optimized": (is_optimized_metric, "a metric of the validation split with its mode, max or min"),
    "versions": (_is_mapping(str), "an object of strings"),
    "code": (
        lambda value: isinstance(value, dict) and {"commit", "dirty"} <= value.keys(),
        "an object with commit and dirty",
    ),
    "hardware": (
        lambda value: isinstance(value, dict) and {"cpu", "cores"} <= value.keys(),
        "an object with cpu and cores",
    ),
    "seed": (lambda value: isinstance(value, int), "an integer"),
    "reason": (lambda value: value is None or isinstance(value, str), "a string"),
    "exit_code": (lambda value: value is None or isinstance(value, int), "an integer"),
}


def default_record() -> dict[str, Any]:
    """Return the entries that a run which ended early leaves out."""
    return copy.deepcopy(DEFAULTS)


@dataclass
class RunRecord:
    """Record of the run in `run_dir`."""

    run_dir: Path

    @property
    def path(self) -> Path:
        return self.run_dir / RUN_JSON

    def read(self) -> dict[str, Any]:
        """Return the entries. A record that says running while no process holds the lock is reported as interrupted.

        Raises:
            ConfigError: if the file is missing.
            CorruptError: if it is corrupt.
        """
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
            content = check_record(json.loads(self.path.read_text(encoding="utf-8")), self.path)
        except (FileNotFoundError, NotADirectoryError) as error:
            found = f"it has no {RUN_JSON}" if self.run_dir.exists() else "it does not exist"
            raise ConfigError(f"{self.run_dir} must be a run folder; {found}") from error
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, CorruptError):
                raise
            raise CorruptError(f"{self.path} is corrupt: {error}") from error
        if content["status"] == RUNNING and lock_holder(self.run_dir) is None:
            content |= {"status": INTERRUPTED, "reason": "the process was killed before it could record its status"}
        return content

    def _stored(self) -> dict[str, Any]:
        """Return the entries of the file without checking them; an empty dict if it is missing or corrupt.

        An error of the disk is raised: what cannot be read now must not be replaced.
        """
        try:
            content: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def update(self, **values: Any) -> None:
        """Change entries.

        Raises:
            DiskError: if the disk is full; the file is left unchanged.
        """
        write_atomic(self.path, (json.dumps(self._stored() | values, indent=2) + "\n").encode())

    def start(self, config: dict[str, Any], choices: dict[str, str], *, hardware: dict[str, Any]) -> None:
        """Write the record of a new run, or add an attempt to that of a resumed run."""
        commit, diff = code_state(CODE_DIR)
        if diff:
            (self.run_dir / CODE_DIFF).write_bytes(diff[:MAX_DIFF_BYTES])
        attempt = {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "start_s": time.time(),
            "pid": os.getpid(),
            "code": {"commit": commit, "dirty": bool(diff)},
            "versions": versions(),
            "hardware": hardware,
        }
        before = self._stored()
        try:
            check_record(before, self.path)
        except CorruptError:
            before = {}
            self.path.unlink(missing_ok=True)
        self.update(
            status=RUNNING,
            reason=None,
            **(attempt | {"start_s": before.get("start_s", attempt["start_s"])}),
            seed=config["seed"],
            config=config,
            choices=choices,
            attempts=[
                *before.get("attempts", []),
                {key: attempt[key] for key in ("command", "start_s", "pid", "code")},
            ],
        )

    def finish(self, status: str, *, reason: str | None = None, exit_code: int = 0, **values: Any) -> None:
        """Record the outcome of the run; `status` is one of STATES."""
        end_s = time.time()
        *earlier, attempt = self._stored().get("attempts") or [{"start_s": end_s}]
        elapsed_s = end_s - attempt["start_s"]
        self.update(
            status=status,
            reason=reason,
            exit_code=exit_code,
            end_s=end_s,
            elapsed_s=elapsed_s,
            attempts=[*earlier, {**attempt, "elapsed_s": elapsed_s}],
            **values,
        )

    def store_attempt(self, config: dict[str, Any], overrides: Sequence[str]) -> None:
        """Write the changed config of a resumed run to `.hydra/resume_<n>/`, next to that of the first attempt."""
        number = 1 + len(list((self.run_dir / ".hydra").glob("resume_*")))
        folder = self.run_dir / ".hydra" / f"resume_{number}"
        folder.mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        OmegaConf.save(OmegaConf.create(list(overrides)), folder / "overrides.yaml")


def images_to_match(images: Mapping[str, Any], *, classes_only: bool) -> dict[str, Any]:
    """Return the entries of `data` in a run record that a resumed run must find unchanged."""
    return {name: value for name, value in images.items() if name == "class_names" or not classes_only}
