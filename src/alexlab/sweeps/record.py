"""The record of a sweep, `sweep.json`: its overrides, launcher and sweeper as plain data, from which it is resumed.

A sweep folder may be a stranger's, so the record holds no text for Hydra: each override is a key and plain values, which are
checked when they are read and then printed in Hydra's grammar. Imports no torch.
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
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException

from alexlab.config import CONFIG_DIR
from alexlab.config.allowlist import check_target
from alexlab.config.grammar import quote
from alexlab.errors import ConfigError
from alexlab.runs.atomic import write_atomic
from alexlab.runs.layout import LAUNCHER_OVERRIDES

RECORD = "sweep.json"
VERSION = 1
MAX_BYTES = 10_000_000
LAUNCHERS = ("sequential", "parallel", "submitit", "ray")
SWEEPERS = ("basic", "optuna")
SWEEPER_KEYS = ("num_trials", "seed", "max_batch_size")
KEY = re.compile(r"(~|\+{0,2})([A-Za-z]\w*)((?:[./]\w+)*)")
GLOB = re.compile(r"[\w*?-]+")
OPTION = re.compile(r"\w[\w-]*(/\w[\w-]*)*")
# In a text that OmegaConf resolves: a reference to another key is fine, a resolver is not. `\${` is plain text.
INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{(?![a-z_]\w*(?:\.\w+)*\})")
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")  # texts that Hydra reads unquoted as themselves
NOT_TEXT = ("true", "false", "null", "nan", "inf")
SETTING = re.compile(r"[\w.,:@%+/-]+")  # text in a setting of a launcher
SUBDIR = re.compile(r"(\$\{hydra\.job\.(num|name)\}|\$\{tag:\$\{hydra\.overrides\.task\}\}|[\w-])+")


@dataclass(frozen=True)
class SweepRecord:
    """One sweep.

    Args:
        overrides: of its jobs; each is `{"key": KEY}` with one of `value`, `choices`, `range`, `interval` or `glob`, or none
            where the key is deleted.
        launcher: the option of the group `launcher`.
        settings: the keys of the `launcher` node that differ from the option's own.
        sweeper: the option of the group `hydra/sweeper`.
        search: the keys of `hydra.sweeper` that have whole numbers.
        subdir: the pattern of the names of the job folders.
        not_kept: words for Hydra that are not restored and must be typed again.
    """

    overrides: Sequence[dict[str, Any]]
    launcher: str = LAUNCHERS[0]
    settings: dict[str, Any] = field(default_factory=dict)
    sweeper: str = SWEEPERS[0]
    search: dict[str, Any] = field(default_factory=dict)
    subdir: str | None = None
    not_kept: Sequence[str] = field(default_factory=list)

    def words(self) -> list[str]:
        """Return the overrides of the jobs in Hydra's grammar."""
        return [as_word(entry) for entry in self.overrides]

    def hydra_words(self) -> list[str]:
        """Return what else Hydra is told, except for the launcher."""
        found = [] if self.sweeper == SWEEPERS[0] else [f"hydra/sweeper={self.sweeper}"]
        found += [f"hydra.sweeper.{name}={_text(value)}" for name, value in self.search.items()]
        return found + ([] if self.subdir is None else [f"hydra.sweep.subdir={self.subdir}"])

    def launcher_words(self) -> list[str]:
        """Return what Hydra is told about the launcher."""
        settings = [f"launcher.{name}={_text(value)}" for name, value in self.settings.items()]
        return [*([] if self.launcher == LAUNCHERS[0] else [f"launcher={self.launcher}"]), *settings]

    def write(self, folder: Path) -> None:
        """Write the record."""
        write_atomic(folder / RECORD, (json.dumps({"version": VERSION, **vars(self)}, indent=2) + "\n").encode())


def recorded(config: Any) -> SweepRecord:
    """Return the record of a sweep that Hydra is about to start.

    Args:
        config: its config as plain data, with Hydra's own node.
    """
    hydra = config["hydra"]
    words = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
    words += [word for word in hydra["overrides"]["task"] if not word.startswith(LAUNCHER_OVERRIDES)]
    launcher = hydra["runtime"]["choices"]["launcher"]
    default = launcher_defaults(launcher)
    own = [word for word in hydra["overrides"]["hydra"] if word.startswith("hydra.sweep.subdir=")]
    kept = ("hydra.sweep", "hydra.mode=", "hydra/sweeper=", "hydra/launcher=")
    return SweepRecord(
        [as_data(override) for override in OverridesParser.create().parse_overrides(words)],
        launcher,
        {name: value for name, value in config["launcher"].items() if value != default.get(name)},
        hydra["runtime"]["choices"]["hydra/sweeper"],
        {name: value for name, value in hydra["sweeper"].items() if name in SWEEPER_KEYS and value is not None},
        own[-1].partition("=")[2].strip("'\"") if own else None,
        [word for word in hydra["overrides"]["hydra"] if not word.startswith(kept)],
    )


def launcher_defaults(option: str) -> dict[str, Any]:
    """Return the keys of the `launcher` node with the values of its option in `conf/`."""
    found: Any = yaml.safe_load((CONFIG_DIR / f"launcher/{option}.yaml").read_text())
    return dict(found.get("launcher", found))


def job_keys() -> set[str]:
    """Return the groups, and the keys at the top, of the config of a job."""
    keys: Any = yaml.safe_load((CONFIG_DIR / "train.yaml").read_text())
    return {*keys, *(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())} - {"hydra", "defaults"}


def as_data(override: Override) -> dict[str, Any]:
    """Return an override as plain data."""
    entry: dict[str, Any] = {"key": override.get_key_element()}
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return entry | {"interval": [value.start, value.end], "log": "log" in value.tags}
    if isinstance(value, RangeSweep) and not value.shuffle:
        return entry | {"range": [value.start, value.stop, value.step]}
    if isinstance(value, Glob):
        return entry | {"glob": value.include, "exclude": value.exclude}
    if isinstance(value, Sweep):
        return entry | {"choices": [_plain(choice) for choice in override.sweep_iterator()]}
    return entry if override.is_delete() and override.value_type is None else entry | {"value": value}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value.text if isinstance(value, QuotedString) else value


def as_word(entry: dict[str, Any]) -> str:
    """Return an override in Hydra's grammar; the inverse of `as_data`."""
    key = entry["key"]
    if "value" in entry:
        return f"{key}={_text(entry['value'])}"
    if "choices" in entry:
        choices = [_text(choice) for choice in entry["choices"]]
        return f"{key}={','.join(choices)}" if len(choices) > 1 else f"{key}=choice({choices[0]})"
    if "range" in entry:
        return f"{key}=range({','.join(map(_text, entry['range']))})"
    if "interval" in entry:
        interval = f"interval({','.join(map(_text, entry['interval']))})"
        return f"{key}=tag(log,{interval})" if entry["log"] else f"{key}={interval}"
    if "glob" in entry:
        include, exclude = (f"[{','.join(entry[name])}]" for name in ("glob", "exclude"))
        return f"{key}=glob({include},exclude={exclude})"
    return str(key)


def _text(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_text(item)}' for name, item in value.items())}}}"
    return value if WORD.fullmatch(value) and value.lower() not in NOT_TEXT else quote(value)


def read_record(folder: Path) -> SweepRecord:
    """Read the record of a sweep folder, checking every entry.

    Raises:
        ConfigError: when there is no record, or it holds anything that `recorded` would not write.
    """
    path = folder / RECORD
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.pop("version", None) != VERSION:
            raise ValueError(f"it must be an object of version {VERSION}")
        record = SweepRecord(**found)
        _check(record)
    except FileNotFoundError as error:
        raise ConfigError(f"-m resume= needs the folder of a sweep; {folder} has no {RECORD}") from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path} is not the record of a sweep that alexlab has written: {reason}") from error
    return record


def _check(record: SweepRecord) -> None:
    if not isinstance(record.overrides, list) or not isinstance(record.not_kept, list):
        raise ValueError("overrides and not_kept must be lists")
    known = job_keys()
    for entry in record.overrides:
        _check_entry(entry, known)
    if record.launcher not in LAUNCHERS:
        raise ValueError(f"launcher must be one of {', '.join(LAUNCHERS)}; got {record.launcher!r}")
    default = launcher_defaults(record.launcher)
    for name, value in record.settings.items():
        if name not in default:
            raise ValueError(f"launcher={record.launcher} has no key {name!r}")
        if isinstance(value, str) and not SETTING.fullmatch(value):
            raise ValueError(f"launcher.{name} must be a plain word; got {value!r}")
        _check_value(value, f"launcher.{name}")
    if record.sweeper not in SWEEPERS:
        raise ValueError(f"sweeper must be one of {', '.join(SWEEPERS)}; got {record.sweeper!r}")
    for name, value in record.search.items():
        if name not in SWEEPER_KEYS or isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"search takes whole numbers for {', '.join(SWEEPER_KEYS)}; got {name!r}: {value!r}")
    if record.subdir is not None and not SUBDIR.fullmatch(record.subdir):
        raise ValueError(f"subdir must name one folder for each job; got {record.subdir!r}")


def _check_entry(entry: Any, known: Collection[str]) -> None:
    """Raise ValueError unless an entry is a key of a job's config with plain values, and survives Hydra's grammar unchanged."""
    match = KEY.fullmatch(entry["key"])
    if match is None or match[2] not in known:
        raise ValueError(f"{entry['key']!r} is no key of a job's config")
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
        (parsed,) = OverridesParser.create().parse_overrides([as_word(entry)])
        same = as_data(parsed) == entry
    except HydraException:
        same = False
    if not same:
        raise ValueError(f"the entry of {entry['key']} holds more than a plain value")


def _check_value(value: Any, where: str, depth: int = 0) -> None:
    """Raise ValueError unless a value is plain: nothing in it is resolved or called, but for a class that `where` may name."""
    if depth > 20:
        raise ValueError(f"{where} is nested too deeply")
    parent, _, name = where.rpartition(".")
    if name == "_target_":
        check_target(value, parent)
    elif isinstance(value, dict):
        for inner, item in value.items():
            if not re.fullmatch(r"\w+", inner):
                raise ValueError(f"{where} must have plain names; got {inner!r}")
            _check_value(item, f"{where}.{inner}", depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, where, depth + 1)
    elif isinstance(value, str):
        if INTERPOLATION.search(value):
            raise ValueError(f"{where} must not call a resolver; got {value!r}")
    elif not (value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))):
        raise ValueError(f"{where} must be a plain value; got {value!r}")
