"""The words of the command line: paths as people have them, and mistakes answered in one sentence. Imports no torch."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, ListConfig, Node, OmegaConf

from alexlab.errors import ConfigError

CONFIG_DIR = Path(__file__).parents[2] / "conf"
PATH_KEYS = (
    "data.root",
    "data.url",
    "model.weights",
    "ckpt",
    "input",
    "resume",
    "rerun",
    "out",
    "downloads",
    "manifest",
    "quarantine",
    "labels",
    "class_names",
    "peer",  # a command line
    "image",
    "neighbours.root",
)
# A value must be of the kind of the default that it replaces, except where Lightning takes several kinds.
OPEN_KEYS = ("trainer.devices", "trainer.fast_dev_run", "trainer.deterministic")
# Groups whose options are added to each other, so that a missing entry is one that was not asked for.
ADDED_GROUPS = (["callbacks"], ["logger"])

EMPTY_GROUPS = ("callbacks", "logger", "ablation")  # of which nothing may be chosen
UNCHOSEN = ("experiment=null", "debug=null", "sweep=null")  # as it is anyway


def as_typed(words: Sequence[str]) -> list[str]:
    """The overrides that Hydra keeps in a config, which OmegaConf would resolve: `hydra.sweep.subdir=${hydra.job.num}`."""
    found: Any = OmegaConf.to_container(cast(ListConfig, words))
    return [str(word) for word in found]


def with_quoted_paths(arguments: Sequence[str]) -> list[str]:
    """Quotes the values of path keys that Hydra's grammar would not read as they are: `data.root=/data/cats & dogs`.

    In a sweep a comma divides the values, unless the whole is a path that exists.
    """
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    return [_quoted(argument, sweep) for argument in arguments]


def _quoted(argument: str, sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    if not equals or key.lstrip("+") not in PATH_KEYS:
        return argument
    if sweep and re.match(r"(choice|glob)\(", value):
        return argument
    values = value.split(",") if sweep and not Path(value).exists() else [value]
    return f"{key}={','.join(quoted_path(path) for path in values)}"


def quoted_path(path: str) -> str:
    """The path as a value that Hydra's grammar reads as that text."""
    if path in ("", "null", "???") or (len(path) > 1 and path[0] == path[-1] and path[0] in "'\""):
        return path
    plain = re.fullmatch(r"[A-Za-z0-9_./-]+", path) and re.search(r"[./-]", path) and re.search(r"[A-Za-z]", path)
    if plain:
        return path
    # A backslash escapes in front of a quote only.
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), path)
    return f"'{escaped}'"


def selects_own_folder(arguments: Sequence[str]) -> list[str]:
    """Adds `data=folder` to a command that names a folder but neither a data set nor an experiment; `streaming` for shards.

    The default data set is the digits; pictures of another folder want other sizes and mirrored views.
    """
    keys = {argument.partition("=")[0] for argument in arguments}
    chosen = keys & {"data", "experiment", "resume", "rerun"}
    for key, option in (("data.root", "folder"), ("data.url", "streaming")):
        if key in keys and not chosen:
            return [*arguments, f"data={option}"]
    return list(arguments)


def check_words(arguments: Sequence[str]) -> None:
    """Raise ConfigError for words that Hydra answers with a traceback: a sweep that is to show a config, a group of null."""
    shown = [word for word in arguments if word in ("-c", "-i") or word.partition("=")[0] in ("--cfg", "--info")]
    if shown and any(word in ("-m", "--multirun") for word in arguments):
        raise ConfigError(f"{shown[0]} shows the config of one run, and -m starts a sweep: leave one of them out")
    for word in in_order(arguments):
        group = word.removesuffix("=null")
        if group != word and (CONFIG_DIR / group).is_dir():
            options = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
            raise ConfigError(f"{group} must be one of {', '.join(options)}; got null")


def in_order(arguments: Sequence[str]) -> list[str]:
    """Put the overrides before the flags, as Hydra's parser needs them, with `callbacks=null` as `callbacks=[]`."""
    empty = {f"{group}=null": f"{group}=[]" for group in EMPTY_GROUPS}
    words = [empty.get(word, word) for word in arguments if word not in UNCHOSEN]
    return sorted(words, key=lambda word: word.startswith("-") or not ("=" in word or word.startswith("~")))


def with_runs(arguments: Sequence[str]) -> list[str]:
    """Turns words without a key, which are folders, into the list `runs`."""
    words = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    others = [argument for argument in arguments if argument not in words]
    if not words:
        return others
    quoted = [path if path.startswith(("'", '"')) else _text(path) for path in words]
    return [*others, f"runs=[{','.join(quoted)}]"]


def _text(path: str) -> str:
    quoted = quoted_path(path)
    return quoted if quoted.startswith("'") else f"'{quoted}'"


def check_overrides() -> None:
    """Makes Hydra check every override against the config that it changes, at the place where it applies them."""
    apply = ConfigLoaderImpl._apply_overrides_to_config

    def apply_checked(overrides: list[Override], config: DictConfig) -> None:
        for override in overrides:
            check_override(override, config)
            apply([override], config)

    ConfigLoaderImpl._apply_overrides_to_config = staticmethod(apply_checked)  # type: ignore[assignment]


def check_override(override: Override, config: DictConfig) -> None:
    """Raises ConfigCompositionException unless the key is there and the value of its kind."""
    key = override.key_or_group
    if override.package is not None or override.is_delete() or override.is_add() or override.is_force_add():
        return
    node: Any = config
    path = key.split(".")
    for depth, name in enumerate(path):
        if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
            return  # below a null or inside a list: Hydra's own words
        if name not in node.keys():  # `in` is false for a value that is still to be given
            raise ConfigCompositionException(_unknown(path[:depth], name, [str(known) for known in node]))
        node = node._get_node(name)
    if key not in OPEN_KEYS and not key.startswith("hydra."):
        _check_kind(key, node, override.value())


def _unknown(parents: list[str], name: str, known: list[str]) -> str:
    key = ".".join([*parents, name])
    options = [path.stem for path in (CONFIG_DIR / parents[0]).glob("*.yaml")] if len(parents) == 1 else []
    if parents[:1] in ADDED_GROUPS and name in options:
        chosen = [option for option in ("default", *known) if option in options]
        return (
            f"{key} is not part of this run, which has {', '.join(known)}; "
            f"add it with '{parents[0]}=[{','.join([*chosen, name])}]'"
        )
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f"there is no key {key}; did you mean {' or '.join('.'.join([*parents, match]) for match in near)}?"
    where = f"{'.'.join(parents)} has" if parents else "the keys and groups are"
    return f"there is no key {key}; {where} {', '.join(sorted(k for k in known if k != 'hydra'))}"


def _check_kind(key: str, node: Node | None, value: Any) -> None:
    if node is None or node._is_none() or node._is_missing() or node._is_interpolation() or value is None:
        return
    default = OmegaConf.to_container(node) if isinstance(node, DictConfig | ListConfig) else node._value()
    kind = _kind(default)
    if isinstance(value, str) and "${" in value:
        return
    if not _fits(value, default):
        raise ConfigCompositionException(f"{key} must be {kind}, like its default {default!r}; got {value!r}")


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, list):
        return isinstance(value, list) and all(_fits(item, default[0]) for item in value if default)
    if isinstance(default, dict):
        return isinstance(value, dict)
    return not isinstance(value, list | dict)


def _kind(default: Any) -> str:
    if isinstance(default, list):
        return f"a list, each item {_kind(default[0])}" if default else "a list"
    names = {bool: "true or false", int: "a whole number", float: "a number", dict: "a mapping"}
    return names.get(type(default), "text")
