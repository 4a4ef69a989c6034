"""The words of the command line: paths as people have them, and mistakes answered in one sentence. Imports no torch."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse

from alexlab.errors import ConfigError

CONFIG_DIR = Path(__file__).parents[3] / "conf"
# Keys whose values are paths, taken as typed: see `quoted_path`.
PATH_KEYS = (
    *("data.root", "data.url", "data.manifest", "data.cache_dir", "class_names", "model.weights"),
    *("resume", "rerun", "ckpt", "input", "image", "neighbours.root", "out"),
    *("data.splits.train", "data.splits.val", "data.splits.test"),
    *("downloads", "manifest", "quarantine", "labels"),
    *("peer", "benchmark.shards"),  # a command line, and a folder or a URL
    "logger.mlflow.tracking_uri",
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"),
)
# A value must be of the kind of the default that it replaces, except where several kinds are taken.
OPEN_KEYS = (
    *("trainer.devices", "trainer.fast_dev_run", "trainer.deterministic", "trainer.strategy"),
    "callbacks.finetune.freeze",
)
# Groups whose options are added to each other, so that a missing entry is one that was not asked for.
ADDED_GROUPS = (("callbacks",), ("logger",))
# Dicts whose entries a person names, each a node; null leaves an entry out.
NAMED = ("callbacks", "logger", "augmentation.train", "augmentation.eval", "augmentation.batch")
# Nodes with arguments that they do not list, and the commands that check them against the signature.
_DATA = ("data", "data.pack", "data.stream")
CALLED = {"train": _DATA, "benchmark": _DATA}
MISSING = "???"

Config = dict[str, Any]

EMPTY_GROUPS = ("callbacks", "logger", "ablation")  # of which nothing may be chosen
UNCHOSEN = ("experiment=null", "debug=null", "sweep=null")  # as it is anyway


def as_typed(words: Sequence[str]) -> list[str]:
    """The overrides that Hydra keeps in a config, which OmegaConf would resolve: `hydra.sweep.subdir=${hydra.job.num}`."""
    found: Any = OmegaConf.to_container(cast(ListConfig, words))
    return [str(word) for word in found]


def with_quoted_paths(arguments: Sequence[str]) -> list[str]:
    """Quote the values of path keys, so that Hydra takes them as typed: `data.root=/data/cats & dogs`.

    In a sweep a comma separates values, unless the whole value is a path that exists.
    """
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    return [_quoted(argument, sweep) for argument in arguments]


def _quoted(argument: str, sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if not equals or name not in PATH_KEYS:
        return argument
    swept = sweep and not name.startswith("hydra.")
    if swept and re.match(r"(choice|glob)\(", value):
        return argument
    values = value.split(",") if swept and not Path(value).exists() else [value]
    return f"{key}={','.join(quoted_path(expanded(path)) for path in values)}"


def with_expanded(arguments: Sequence[str]) -> list[str]:
    """Expand `~` in the folders of `resume=` and `rerun=`, which are read before Hydra starts."""
    pairs = [argument.partition("=") for argument in arguments]
    return [f"{key}{equals}{expanded(value) if key in ('resume', 'rerun') else value}" for key, equals, value in pairs]


def expanded(path: str) -> str:
    """Return a path with `~` or `~user` at its start replaced by the home folder, unless there is a file of that name."""
    return os.path.expanduser(path) if path.startswith("~") and not os.path.lexists(path) else path


def with_home(config: DictConfig) -> None:
    """Expand `~` in the paths of a composed config, which YAML files may have set."""
    for key in PATH_KEYS:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent, throw_on_missing=False) if parent else config
        if not isinstance(node, DictConfig) or name not in node or OmegaConf.is_interpolation(node, name):
            continue
        if isinstance(node[name], str) and expanded(node[name]) != node[name]:
            node[name] = expanded(node[name])


def quoted_path(path: str) -> str:
    """Return a path as a value that Hydra's grammar reads as that text.

    `${...}` is an interpolation, as in `hydra.run.dir=runs/${seed}`, unless a file or folder has it in its name or it is
    incomplete; then it is part of the path.
    """
    if path in ("", "null", "???") or (len(path) > 1 and path[0] == path[-1] and path[0] in "'\""):
        return path
    plain = re.fullmatch(r"[A-Za-z0-9_./-]+", path) and re.search(r"[./-]", path) and re.search(r"[A-Za-z]", path)
    if plain:
        return path
    if "${" in path and _is_literal(path):
        path = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", path)
    return quoted(path)


def quoted(text: str) -> str:
    """Return a text in quotes, as a value that Hydra's grammar reads as that text."""
    # A backslash escapes in front of a quote only.
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"


def _is_literal(path: str) -> bool:
    """Whether `${` in a path is part of a name."""
    if any("${" in str(folder) and os.path.lexists(folder) for folder in (Path(path), *Path(path).parents)):
        return True
    return not _is_parsed(path)


def _is_parsed(text: str) -> bool:
    """Whether a text with `${` is complete."""
    try:
        parse(text)
    except GrammarParseError:
        return False
    return True


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
    """Turn arguments without a key, which are folders, into the list `runs`."""
    words = [word for word in arguments if not word.startswith("-") and ("=" not in word or Path(word).exists())]
    others = [argument for argument in arguments if argument not in words]
    if not words:
        return others
    quoted = [path if path.startswith(("'", '"')) else _text(expanded(path)) for path in words]
    return [*others, f"runs=[{','.join(quoted)}]"]


def _text(path: str) -> str:
    quoted = quoted_path(path)
    return quoted if quoted.startswith("'") else f"'{quoted}'"


class CompositionError(ConfigError, ConfigCompositionException):
    """A mistake in a config file or an override, such as a key that nothing reads, in one sentence.

    Args:
        text: the sentence.
        place: names that lead to the key.
    """

    def __init__(self, text: str, place: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.place = place


def check_override(override: Override, config: DictConfig, *, command: str = "train") -> None:
    """Raise CompositionError unless an override changes, adds or removes what `command` reads."""
    if override.package is not None:
        return  # Hydra says that there is no such group
    known: Any = OmegaConf.to_container(config)
    path = override.key_or_group.split(".")
    for depth, name in enumerate(path):
        if known is None or isinstance(known, list):
            return  # below a null or inside a list: Hydra's own words
        if not isinstance(known, dict):
            raise CompositionError(f"{'.'.join(path[:depth])} is a value and has no key {name}", path)
        if depth == len(path) - 1 or name not in known:
            break
        known = known[name]
    parents, rest = path[:depth], path[depth:]
    if path[0] == "hydra":
        # What Hydra has a type for takes no other keys; a mapping such as hydra.job.env_set does.
        if rest[0] not in known and (
            not override.is_add() or OmegaConf.get_type(OmegaConf.select(config, ".".join(parents))) is not dict
        ):
            raise unknown(parents, rest[0], list(known))
        return
    if override.is_delete():
        if rest[0] in known and "_target_" not in known and ".".join(parents) not in NAMED:
            raise CompositionError(f"{'.'.join(path)} is needed and cannot be removed; give it another value", path)
        return
    adds = override.is_add() or override.is_force_add()
    value: Any = override.value()
    for name in reversed(rest[1:]):
        value = {name: value}
    check_change(known, {rest[0]: value}, parents, command=command, adds=adds)


def check_change(
    known: Config, change: Config, parents: Sequence[str] = (), *, command: str, adds: bool, free: bool = False
) -> None:
    """Raise CompositionError unless a change sets keys that are read, to values of the kind of those that they replace.

    Args:
        known: a node of the config, plain and unresolved.
        change: what is merged into it.
        parents: names that lead to the node.
        command: name of the command that reads it.
        adds: new keys are allowed where another check follows: arguments of a call, entries of a named dict.
        free: new keys are allowed everywhere.
    """
    for name, value in change.items():
        place = [*parents, str(name)]
        default = known.get(name, MISSING)
        if isinstance(value, str) and "${" in value and not _is_parsed(value):
            raise CompositionError(
                f"{'.'.join(place)}: {value!r} is an incomplete interpolation; the text is written \\${{", place
            )
        if name not in known:
            if not free and not (adds and _is_open(known, parents, command)):
                raise unknown(parents, str(name), [str(key) for key in known])
            if (
                tuple(parents) in ADDED_GROUPS
                and isinstance(value, dict)
                and "_target_" not in value
                and _is_option(place)
            ):
                raise unknown(parents, str(name), [str(key) for key in known])
        elif isinstance(default, dict) and isinstance(value, dict):
            inside = free or "_target_" in default
            check_change(default, value, place, command=command, adds=adds, free=inside and adds)
        elif not (value is None and ".".join(parents) in NAMED) and ".".join(place) not in OPEN_KEYS:
            _check_kind(place, default, value)


def _is_open(node: Config, place: Sequence[str], command: str) -> bool:
    """Whether keys that a node does not list are checked later: by the call that it configures, or each as a node."""
    key = ".".join(place)
    return "_target_" in node or key in NAMED or key in CALLED.get(command, ())


def _is_option(place: Sequence[str]) -> bool:
    return (CONFIG_DIR / place[0] / f"{place[1]}.yaml").is_file()


def unknown(parents: Sequence[str], name: str, known: Sequence[str]) -> CompositionError:
    """The error for a key that nothing reads, with the key that was probably meant."""
    key = ".".join([*parents, name])
    if tuple(parents) in ADDED_GROUPS and _is_option([*parents, name]):
        text = f"{key} is not part of this run, which has {', '.join(known)}; add it with {parents[0]}={name}"
        return CompositionError(text, [*parents, name])
    if "." in name:
        text = f"there is no key {key}; a YAML file writes `{name.split('.')[0]}:` and the rest indented below it"
        return CompositionError(text, [*parents, name])
    # An overlay such as experiment= is no key of the config.
    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()] if "trainer" in known else []
    near = difflib.get_close_matches(name, sorted({*known, *groups}), n=3)
    if near:
        text = f"there is no key {key}; did you mean {' or '.join('.'.join([*parents, match]) for match in near)}?"
        return CompositionError(text, [*parents, name])
    where = f"{'.'.join(parents)} has" if parents else "the keys and groups are"
    listed = ", ".join(sorted(k for k in known if k != "hydra"))
    return CompositionError(f"there is no key {key}; {where} {listed}", [*parents, name])


def _check_kind(place: Sequence[str], default: Any, value: Any) -> None:
    if (
        default is None
        or default == MISSING
        or any(isinstance(text, str) and "${" in text for text in (default, value))
    ):
        return
    if (value is None and not isinstance(default, dict)) or _fits(value, default):
        return
    like = "" if isinstance(default, dict) else f", like its default {default!r}"
    raise CompositionError(
        f"{'.'.join(place)} must be {_kind(default)}{like}; got {_shown(value)}{_hint(default, value)}", place
    )


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _hint(default: Any, value: Any) -> str:
    """Say how a text should have been written that was meant as a number or as true or false."""
    if not isinstance(value, str) or not isinstance(default, bool | int | float):
        return ""
    if _is_number(value) or value.lower() in ("true", "false"):
        return ". Write it without quotes"
    return f". Write {value.replace(',', '.')}" if _is_number(value.replace(",", ".")) else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
