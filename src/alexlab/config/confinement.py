"""Limits on what comes from a run or sweep folder, which may be a stranger's: a resumed run writes inside its own folder only.

Whatever leads elsewhere must be typed on the command line. Imports no torch.
"""

import os
import re
import shlex
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from alexlab.config import CONFIG_DIR
from alexlab.data.config import DataConfig
from alexlab.errors import ConfigError
from alexlab.runs.layout import SLURM_LOG

METRIC = re.compile(r"(train|val|test|best)/\w+")
# Arguments of callbacks, loggers and profilers that say where something goes, and to whom.
DESTINATION = re.compile(r"dir|path|folder|root|uri|url|host|key|token|entity|workspace", re.IGNORECASE)
ELSEWHERE = re.compile(r"[/\\]|\.\.|^~|:")  # in a value that is no metric


def check_confined(
    config: dict[str, Any], folder: Path, *, confirmed: Collection[str] = (), own: dict[str, Any] | None = None
) -> None:
    """Raise ConfigError for the first value by which a config from `folder` would write or send anything elsewhere.

    Args:
        config: the config of a run, plain data.
        folder: the run or sweep folder that the config comes from, for the message.
        confirmed: keys typed on this command line, whose values are the user's own.
        own: a config whose values are the user's own.
    """
    known = [] if own is None else list(_leading_elsewhere(own))
    for key, value in _leading_elsewhere(config):
        if (key, value) not in known and not any(key == typed or key.startswith(f"{typed}.") for typed in confirmed):
            raise ConfigError(
                f"{folder} sets {key}={value}, which leads out of its own folder; if that is what you want, add "
                f"{_typed(key, str(value))} to the command"
            )


def _typed(key: str, value: str) -> str:
    """An override as a person types it in a shell."""
    if re.fullmatch(r"[\w/.-]*[\w-]", value) and not value.startswith("."):
        return f"{key}={value}"
    return shlex.quote(f'{key}="{value}"')


def _leading_elsewhere(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    data, trainer = config["data"], config["trainer"]
    if data.get("cache_dir") != DataConfig.cache_dir:
        yield "data.cache_dir", data.get("cache_dir")
    if not _made_at_home(data) and not os.path.exists(str(data["root"])):
        yield "data.root", data["root"]  # it would be written there
    if trainer.get("model_registry") is not None:
        yield "trainer.model_registry", trainer["model_registry"]
    nodes = {name: trainer.get(name) for name in ("profiler", "strategy", "plugins")}
    for group, content in (("callbacks", config["callbacks"]), ("logger", config["logger"]), ("trainer", nodes)):
        for key, value in _leaves(content, group):
            name = key.rpartition(".")[2]
            if name == "_target_" or not isinstance(value, str) or METRIC.fullmatch(value):
                continue
            if (DESTINATION.search(name) or ELSEWHERE.search(value)) and value != _default(key):
                yield key, value


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The values in a nested config that are neither mappings nor lists, with their keys; those of a list have its key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}")
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node


def _default(key: str) -> Any:
    """The value that the option of a group named like its entry has for a key, as `logger.mlflow.tracking_uri`; else None."""
    group, _, rest = key.partition(".")
    path = CONFIG_DIR / group / f"{rest.partition('.')[0]}.yaml"
    found: Any = yaml.safe_load(path.read_text()) if path.is_file() else None
    for name in rest.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def confined_data(data: dict[str, Any]) -> dict[str, Any]:
    """Return the `data` node of a stranger's checkpoint such that using it writes to the default cache folder only."""
    return {
        **data,
        "generate": data.get("generate") if _made_at_home(data) else None,
        "cache_dir": DataConfig.cache_dir,
    }


def _made_at_home(data: dict[str, Any]) -> bool:
    """Return whether a generated data set is written to the default folder of its option; true if it is not generated."""
    return data.get("generate") is None or data.get("root") == f"data/{data['generate']}"


def check_folder(folder: Path) -> None:
    """Raise ConfigError unless a folder that is about to be written in holds only folders and regular files of its own.

    A link inside of it that leads out would let a run write elsewhere; a pipe or device would block it.
    """
    real = os.path.realpath(folder)
    linked: Counter[tuple[int, int]] = Counter()
    several: dict[tuple[int, int], tuple[str, int]] = {}
    for place, folders, files in os.walk(real):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                target = os.path.realpath(path)
                if name != SLURM_LOG and os.path.commonpath([real, target]) != real:  # that one is only replaced
                    raise ConfigError(f"{folder} must not hold links that lead out of it; {path} leads to {target}")
            elif not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise ConfigError(f"{folder} must hold only folders and regular files; {path} is neither")
            elif stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                linked[status.st_dev, status.st_ino] += 1
                several[status.st_dev, status.st_ino] = path, status.st_nlink
    for inode, (path, count) in several.items():
        if linked[inode] != count:
            raise ConfigError(
                f"{folder} must not share files with other folders; {path} is also a file elsewhere (a hard link). "
                "Copy the folder with cp -r and resume the copy"
            )
