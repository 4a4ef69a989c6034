"""Rewriting of the typed arguments before Hydra parses them: paths need no quotes, flags may come first."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from alexlab.config import CONFIG_DIR
from alexlab.config.grammar import expand_home, quote_path
from alexlab.errors import ConfigError

# Keys whose values are paths and are taken as typed, see `quote_path`.
PATH_KEYS = (
    *("data.root", "data.url", "data.manifest", "data.cache_dir", "class_names", "model.weights"),
    *("resume", "rerun", "ckpt", "input", "image", "neighbours.root", "out"),
    *("data.splits.train", "data.splits.val", "data.splits.test"),
    *("downloads", "manifest", "quarantine", "labels"),
    *("peer", "benchmark.shards"),  # a command line, and a folder or a URL
    "logger.mlflow.tracking_uri",
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"),
)
EMPTY_GROUPS = ("callbacks", "logger", "metrics", "ablation")  # groups of which no option need be selected
REDUNDANT = ("experiment=null", "debug=null", "sweep=null")  # the defaults, which Hydra refuses on the command line


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote the values of path keys, so that Hydra takes them as typed: `data.root=/data/cats & dogs`.

    In a sweep a comma separates values, unless the whole value is an existing path.
    """
    is_sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    return [_quote_value(argument, is_sweep) for argument in arguments]


def _quote_value(argument: str, is_sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if not equals or name not in PATH_KEYS:
        return argument
    is_swept = is_sweep and not name.startswith("hydra.")
    if is_swept and re.match(r"(choice|glob)\(", value):
        return argument
    values = value.split(",") if is_swept and not Path(value).exists() else [value]
    return f"{key}={','.join(quote_path(expand_home(path)) for path in values)}"


def expand_run_dirs(arguments: Sequence[str]) -> list[str]:
    """Expand `~` in the folders of `resume=` and `rerun=`, which are read before Hydra starts."""
    pairs = [argument.partition("=") for argument in arguments]
    return [
        f"{key}{equals}{expand_home(value) if key in ('resume', 'rerun') else value}" for key, equals, value in pairs
    ]


def expand_paths(config: DictConfig) -> None:
    """Expand `~` in the paths of a composed config, which YAML files may have set."""
    for key in PATH_KEYS:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent, throw_on_missing=False) if parent else config
        if not isinstance(node, DictConfig) or name not in node or OmegaConf.is_interpolation(node, name):
            continue
        if isinstance(node[name], str) and expand_home(node[name]) != node[name]:
            node[name] = expand_home(node[name])


def select_data(arguments: Sequence[str]) -> list[str]:
    """Add `data=folder`, or `data=streaming` for a URL, if a location but no dataset or experiment is given.

    The default dataset is the digits; photographs need another image size and mirrored views.
    """
    keys = {argument.partition("=")[0] for argument in arguments}
    selected = keys & {"data", "experiment", "resume", "rerun"}
    for key, option in (("data.root", "folder"), ("data.url", "streaming")):
        if key in keys and not selected:
            return [*arguments, f"data={option}"]
    return list(arguments)


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise ConfigError for arguments that make Hydra print a traceback: `--cfg` in a sweep, and `GROUP=null`."""
    flags = [item for item in arguments if item in ("-c", "-i") or item.partition("=")[0] in ("--cfg", "--info")]
    if flags and any(argument in ("-m", "--multirun") for argument in arguments):
        raise ConfigError(f"{flags[0]} prints the config of one run, and -m starts a sweep: use one of them")
    for argument in order_arguments(arguments):
        group = argument.removesuffix("=null")
        if group != argument and (CONFIG_DIR / group).is_dir():
            options = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
            raise ConfigError(f"{group} must be one of {', '.join(options)}; got null")


def order_arguments(arguments: Sequence[str]) -> list[str]:
    """Put the overrides before the flags, as Hydra's parser requires, and write `callbacks=null` as `callbacks=[]`."""
    empty = {f"{group}=null": f"{group}=[]" for group in EMPTY_GROUPS}
    kept = [empty.get(argument, argument) for argument in arguments if argument not in REDUNDANT]
    return sorted(kept, key=lambda item: item.startswith("-") or not ("=" in item or item.startswith("~")))


def collect_runs(arguments: Sequence[str]) -> list[str]:
    """Turn positional arguments, which are run folders, into the list `runs=[...]`."""
    run_dirs = [item for item in arguments if not item.startswith("-") and ("=" not in item or Path(item).exists())]
    others = [argument for argument in arguments if argument not in run_dirs]
    if not run_dirs:
        return others
    quoted = [path if path.startswith(("'", '"')) else _always_quoted(expand_home(path)) for path in run_dirs]
    return [*others, f"runs=[{','.join(quoted)}]"]


def _always_quoted(path: str) -> str:
    quoted = quote_path(path)
    return quoted if quoted.startswith("'") else f"'{quoted}'"
