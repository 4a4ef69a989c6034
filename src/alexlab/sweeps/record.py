"""Record of a sweep, `sweep.json`: its overrides, launcher and sweeper as plain data, from which it is resumed.

A sweep folder may come from someone else, so the record contains no text that Hydra interprets: each override is a key and plain
values, which are checked when they are read and then printed in Hydra's grammar.
"""

import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from alexlab.config import CONFIG_DIR
from alexlab.config.allowlist import check_target
from alexlab.config.grammar import to_text
from alexlab.config.own_code import has_option
from alexlab.errors import ConfigError
from alexlab.records.atomic import write_atomic
from alexlab.records.layout import LAUNCHER_OVERRIDES, SWEEP_JSON
from alexlab.sweeps.entries import to_entry, to_override

VERSION = 1
MAX_BYTES = 10_000_000
LAUNCHERS = ("sequential", "parallel", "submitit", "ray")
RETRY_FAILED = "retry_failed"
SWEEPERS = ("basic", "optuna", "list")
SWEEPER_KEYS = ("num_trials", "seed")
KEY = re.compile(r"(~|\+{0,2})([A-Za-z]\w*)((?:[./]\w+)*)")
GLOB = re.compile(r"[\w*?-]+")
OPTION = re.compile(r"\w[\w-]*(/\w[\w-]*)*")
# Of a resolver. References to other keys are allowed, and `\${` is plain text.
INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{(?![a-z_]\w*(?:\.\w+)*\})")
SETTING = re.compile(r"[\w.,:@%+/-]+")  # string in a setting of a launcher
SUBDIR = re.compile(r"(\$\{hydra\.job\.(num|name|override_dirname)\}|\$\{tag:\$\{hydra\.overrides\.task\}\}|[\w-])+")


@dataclass(frozen=True)
class SweepRecord:
    """Record of one sweep.

    Args:
        overrides: overrides of the jobs, as entries (`alexlab.sweeps.entries`).
        launcher: option of the group `launcher`.
        settings: keys of the `launcher` node on the command line, without `retry_failed`, which applies to one command.
        sweeper: option of the group `hydra/sweeper`.
        search: integer keys of `hydra.sweeper`.
        subdir: pattern of the names of the job folders.
        dropped: other overrides of Hydra's own config, which are not restored and must be given again.
    """

    overrides: Sequence[dict[str, Any]]
    launcher: str = LAUNCHERS[0]
    settings: dict[str, Any] = field(default_factory=dict)
    sweeper: str = SWEEPERS[0]
    search: dict[str, Any] = field(default_factory=dict)
    subdir: str | None = None
    dropped: Sequence[str] = field(default_factory=list)

    def job_overrides(self) -> list[str]:
        """Return the overrides of the jobs in Hydra's grammar."""
        return [to_override(entry) for entry in self.overrides]

    def hydra_overrides(self) -> list[str]:
        """Return the overrides of the sweeper and the folders."""
        found = [] if self.sweeper == SWEEPERS[0] else [f"hydra/sweeper={self.sweeper}"]
        found += [f"hydra.sweeper.{name}={to_text(value)}" for name, value in self.search.items()]
        return found + ([] if self.subdir is None else [f"hydra.sweep.subdir={self.subdir}"])

    def launcher_overrides(self) -> list[str]:
        """Return the overrides of the launcher."""
        settings = [f"launcher.{name}={to_text(value)}" for name, value in self.settings.items()]
        return [*([] if self.launcher == LAUNCHERS[0] else [f"launcher={self.launcher}"]), *settings]

    def write(self, folder: Path) -> None:
        """Write the record."""
        write_atomic(folder / SWEEP_JSON, (json.dumps({"version": VERSION, **vars(self)}, indent=2) + "\n").encode())


def make_record(config: Any) -> SweepRecord:
    """Return the record of a sweep that Hydra is about to start.

    Args:
        config: config of the sweep as plain data, with the `hydra` node.
    """
    hydra = config["hydra"]
    overrides = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
    overrides += [override for override in hydra["overrides"]["task"] if not override.startswith(LAUNCHER_OVERRIDES)]
    typed = [override for override in hydra["overrides"]["task"] if override.startswith("launcher.")]
    names = {override.partition("=")[0].split(".")[1] for override in typed} - {RETRY_FAILED}
    subdirs = [override for override in hydra["overrides"]["hydra"] if override.startswith("hydra.sweep.subdir=")]
    restored = ("hydra.sweep", "hydra.mode=", "hydra/sweeper=", "hydra/launcher=")
    return SweepRecord(
        [to_entry(override) for override in OverridesParser.create().parse_overrides(overrides)],
        launcher=hydra["runtime"]["choices"]["launcher"],
        settings={name: value for name, value in config["launcher"].items() if name in names},
        sweeper=hydra["runtime"]["choices"]["hydra/sweeper"],
        search={name: value for name, value in hydra["sweeper"].items() if name in SWEEPER_KEYS and value is not None},
        subdir=subdirs[-1].partition("=")[2].strip("'\"") if subdirs else None,
        dropped=[override for override in hydra["overrides"]["hydra"] if not override.startswith(restored)],
    )


def launcher_defaults(option: str) -> dict[str, Any]:
    """Return the `launcher` node of an option in `conf/`."""
    found: Any = yaml.safe_load((CONFIG_DIR / f"launcher/{option}.yaml").read_text())
    return dict(found.get("launcher", found))


def job_keys() -> set[str]:
    """Return the config groups and the top-level keys of the config of a job."""
    keys: Any = yaml.safe_load((CONFIG_DIR / "train.yaml").read_text())
    return {*keys, *(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())} - {"hydra", "defaults"}


def read_record(folder: Path) -> SweepRecord:
    """Read the record of a sweep folder, checking every entry.

    Raises:
        ConfigError: if the record is missing or contains anything that `make_record` would not write.
    """
    path = folder / SWEEP_JSON
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.pop("version", None) != VERSION:
            raise ValueError(f"it must be an object of version {VERSION}")
        record = SweepRecord(**found)
        check_sweep_record(record)
    except FileNotFoundError as error:
        raise ConfigError(f"-m resume= needs the folder of a sweep; {folder} has no {SWEEP_JSON}") from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path} is not a sweep record written by alexlab: {reason}") from error
    return record


def check_sweep_record(record: SweepRecord) -> None:
    """Raise ValueError for anything in a record that alexlab would not write."""
    if not isinstance(record.overrides, list) or not isinstance(record.dropped, list):
        raise ValueError("overrides and dropped must be lists")
    known = job_keys()
    for entry in record.overrides:
        check_entry(entry, known)
    is_own = OPTION.fullmatch(record.launcher) is not None and has_option("launcher", record.launcher)
    if record.launcher not in LAUNCHERS and not is_own:
        own = "or of the folder of --config-dir"
        raise ValueError(f"launcher must be one of {', '.join(LAUNCHERS)}, {own}; got {record.launcher!r}")
    default = None if is_own else launcher_defaults(record.launcher)
    for name, value in record.settings.items():
        if name not in default if default is not None else not re.fullmatch(r"[a-z]\w*", name):
            raise ValueError(f"launcher={record.launcher} has no key {name!r}")
        if isinstance(value, str) and not SETTING.fullmatch(value):
            raise ValueError(f"launcher.{name} must not have special characters; got {value!r}")
        _check_value(value, f"launcher.{name}")
    if record.sweeper not in SWEEPERS:
        raise ValueError(f"sweeper must be one of {', '.join(SWEEPERS)}; got {record.sweeper!r}")
    for name, value in record.search.items():
        if name not in SWEEPER_KEYS or isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"search must have integers for {', '.join(SWEEPER_KEYS)}; got {name!r}: {value!r}")
    if record.subdir is not None and not SUBDIR.fullmatch(record.subdir):
        raise ValueError(f"subdir must name one folder for each job; got {record.subdir!r}")


def check_entry(entry: Any, known: Collection[str]) -> None:
    """Raise ValueError unless an entry is a key of a job's config with plain values, and Hydra parses it back unchanged."""
    match = KEY.fullmatch(entry["key"])
    if match is None or match[2] not in known:
        raise ValueError(f"{entry['key']!r} is not a key of a job's config")
    key = f"{match[2]}{match[3]}"
    values = (
        [entry["value"]] if "value" in entry else entry.get("choices", entry.get("range", entry.get("interval", [])))
    )
    for value in values:
        _check_value(value, key)
    if (CONFIG_DIR / key).is_dir():
        for option in (option for value in values for option in (value if isinstance(value, list) else [value])):
            if option is not None and not OPTION.fullmatch(str(option)):
                raise ValueError(f"{key} must name an option of the group; got {option!r}")
    for glob in (*entry.get("glob", ()), *entry.get("exclude", ())):
        if not GLOB.fullmatch(glob):
            raise ValueError(f"{key} must have patterns of option names; got {glob!r}")
    try:
        (parsed,) = OverridesParser.create().parse_overrides([to_override(entry)])
        same = to_entry(parsed) == entry
    except HydraException:
        same = False
    if not same:
        raise ValueError(f"the entry of {entry['key']} must be a plain override")


def _check_value(value: Any, where: str, depth: int = 0) -> None:
    """Raise ValueError unless a value is plain: nothing in it is resolved or called, except an allowed `_target_`."""
    if depth > 20:
        raise ValueError(f"{where} is nested too deeply")
    parent, _, name = where.rpartition(".")
    if name == "_target_":
        check_target(value, parent)
    elif isinstance(value, dict):
        for inner, item in value.items():
            if not re.fullmatch(r"\w+", inner):
                raise ValueError(f"{where} must have keys of letters, digits and _; got {inner!r}")
            _check_value(item, f"{where}.{inner}", depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, where, depth + 1)
    elif isinstance(value, str):
        if INTERPOLATION.search(value):
            raise ValueError(f"{where} must not call a resolver; got {value!r}")
    elif not (value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))):
        raise ValueError(f"{where} must be a plain value; got {value!r}")
