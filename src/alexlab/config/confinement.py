"""Confinement of resumed runs: a config from a run folder, which may come from somebody else, may only write inside it.

A value that refers to another location must be repeated on the command line.
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
from alexlab.errors import ConfigError
from alexlab.records.layout import SLURM_LOG, outputs_dir

# Links to SLURM's log, which is only replaced, and to the log of W&B's service, which a resumed run does not write.
OWN_LINKS = (SLURM_LOG, "debug-core.log")
FREE_TEXT = ("logger.wandb.notes", "logger.wandb.tags")
METRIC = re.compile(r"(train|val|test|best)/\w+")
# Arguments of callbacks, loggers and profilers that name a location or an account.
DESTINATION = re.compile(r"dir|path|folder|root|uri|url|host|key|token|entity|workspace", re.IGNORECASE)
ELSEWHERE = re.compile(r"[/\\]|\.\.|^~|:")  # in a value that is no metric


def check_confined(
    config: dict[str, Any], folder: Path, *, confirmed: Collection[str] = (), own: dict[str, Any] | None = None
) -> None:
    """Raise ConfigError for the first value by which a config from `folder` would write or send data elsewhere.

    Args:
        config: config of a run, plain data.
        folder: run or sweep folder that the config comes from, for the message.
        confirmed: keys repeated on the command line, whose values are accepted.
        own: config composed by the user, whose values are accepted.
    """
    known = [] if own is None else list(_outside_values(own))
    for key, value in _outside_values(config):
        if (key, value) not in known and not any(key == typed or key.startswith(f"{typed}.") for typed in confirmed):
            raise ConfigError(
                f"{folder} sets {key}={value}, which is outside that folder; if you want this, add "
                f"{_shell_override(key, str(value))} to the command"
            )


def _shell_override(key: str, value: str) -> str:
    """Return an override as it is typed in a shell."""
    if re.fullmatch(r"[\w/.-]*[\w-]", value) and not value.startswith("."):
        return f"{key}={value}"
    return shlex.quote(f'{key}="{value}"')


def _outside_values(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    from alexlab.data.config import DataConfig  # imports NumPy and Pillow, which `--help` does not need

    data, trainer = config["data"], config["trainer"]
    if data.get("cache_dir") != DataConfig.cache_dir:
        yield "data.cache_dir", data.get("cache_dir")
    if not _generates_in_default_dir(data) and not os.path.exists(str(data["root"])):
        yield "data.root", data["root"]  # the dataset would be generated there
    for key, value in _leaves(data.get("dataset"), "data.dataset"):
        name = key.rpartition(".")[2]
        if (
            isinstance(value, str)
            and (DESTINATION.search(name) or ELSEWHERE.search(value))
            and not os.path.exists(value)
        ):
            yield key, value  # your class would create it
    if trainer.get("model_registry") is not None:
        yield "trainer.model_registry", trainer["model_registry"]
    nodes = {name: trainer.get(name) for name in ("profiler", "strategy", "plugins")}
    for group, content in (("callbacks", config["callbacks"]), ("logger", config["logger"]), ("trainer", nodes)):
        for key, value in _leaves(content, group):
            name = key.rpartition(".")[2]
            if name == "_target_" or key in FREE_TEXT or not isinstance(value, str) or METRIC.fullmatch(value):
                continue
            if (DESTINATION.search(name) or ELSEWHERE.search(value)) and value != _default(key):
                yield key, value


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a nested config that are neither mappings nor lists; list items have the key of the list."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}")
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node


def _default(key: str) -> Any:
    """Return the default of a key such as `logger.mlflow.tracking_uri` in conf/logger/mlflow.yaml, or None."""
    group, _, rest = key.partition(".")
    path = CONFIG_DIR / group / f"{rest.partition('.')[0]}.yaml"
    found: Any = yaml.safe_load(path.read_text()) if path.is_file() else None
    for name in rest.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found.replace("${oc.env:ALEXLAB_OUTPUTS,outputs}", str(outputs_dir())) if isinstance(found, str) else found


def confined_data(data: dict[str, Any]) -> dict[str, Any]:
    """Return the `data` node of a checkpoint, changed so that using it writes to the default cache folder only."""
    from alexlab.data.config import DataConfig

    return {
        **data,
        "generate": data.get("generate") if _generates_in_default_dir(data) else None,
        "cache_dir": DataConfig.cache_dir,
    }


def _generates_in_default_dir(data: dict[str, Any]) -> bool:
    """Return whether the dataset is not generated, or generated in the default folder of its option."""
    return data.get("generate") is None or data.get("root") == f"data/{data['generate']}"


def check_folder(folder: Path) -> None:
    """Raise ConfigError unless a folder contains only folders and regular files that no other folder shares.

    Links would let a resumed run write outside the folder, and a pipe or device would block it.
    """
    real = os.path.realpath(folder)
    linked: Counter[tuple[int, int]] = Counter()
    hard_links: dict[tuple[int, int], tuple[str, int]] = {}
    for parent, folders, files in os.walk(real):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                target = os.path.realpath(path)
                if name not in OWN_LINKS and os.path.commonpath([real, target]) != real:
                    raise ConfigError(f"{folder} must not contain links to files outside it; {path} links to {target}")
            elif not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise ConfigError(f"{folder} must contain only folders and regular files; {path} is neither")
            elif stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                linked[status.st_dev, status.st_ino] += 1
                hard_links[status.st_dev, status.st_ino] = path, status.st_nlink
    for inode, (path, count) in hard_links.items():
        if linked[inode] != count:
            raise ConfigError(
                f"{folder} must not share files with other folders; {path} is also a file elsewhere (a hard link). "
                "Copy the folder with cp -r and resume the copy"
            )
