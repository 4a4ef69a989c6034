"""Checks of overrides and config files: every key must be read by the command, every value of the right type."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from alexlab.cli.synonyms import replacement
from alexlab.config import CONFIG_DIR
from alexlab.config.grammar import is_interpolation, is_number
from alexlab.errors import ConfigError

# A value must have the type of the default that it replaces, except for keys that take several types.
UNTYPED_KEYS = (
    *("trainer.devices", "trainer.fast_dev_run", "trainer.deterministic", "trainer.strategy"),
    "callbacks.finetune.freeze",
)
# Numbers that mean a fraction if they are floats, and a number of batches if they are integers.
FRACTION_KEYS = tuple(
    f"trainer.{name}"
    for name in (
        "limit_train_batches",
        "limit_val_batches",
        "limit_test_batches",
        "overfit_batches",
        "val_check_interval",
    )
)
REQUIRED_KEYS = ("seed", "data.cache_dir")  # no null, which a run or a resume cannot use
# Groups whose options are merged, so that a missing entry belongs to an option that was not selected.
MERGED_GROUPS = (("callbacks",), ("logger",), ("metrics",))
# Dicts of named entries; null removes an entry.
NAMED_NODES = (
    *("callbacks", "logger", "metrics", "augmentation.train", "augmentation.eval", "augmentation.batch"),
    "param_groups.layer_lrs",
)
# Nodes that do not list every argument, and the commands that check them against the signature.
_DATA = ("data", "data.pack", "data.stream")
SIGNATURE_NODES = {"train": _DATA, "benchmark": _DATA}
MISSING = "???"

Config = dict[str, Any]


@dataclass(frozen=True)
class Reader:
    """A command and the config that it reads.

    Args:
        command: name of the command.
        config: plain config, without the `hydra` node.
    """

    command: str
    config: Config


class CompositionError(ConfigError, ConfigCompositionException):
    """An invalid config file or override, such as a key that no command reads.

    Args:
        message: one sentence.
        key: path of the key, one name per level.
    """

    def __init__(self, message: str, key: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.key = key


def check_override(override: Override, config: DictConfig, *, command: str = "train") -> None:
    """Raise CompositionError unless an override changes, adds or removes what `command` reads."""
    if override.package is not None:
        return  # Hydra reports the unknown group
    known: Any = OmegaConf.to_container(config)
    reader = Reader(command, {key: node for key, node in known.items() if key != "hydra"})
    path = override.key_or_group.split(".")
    for depth, name in enumerate(path):
        if known is None and not (override.is_add() or override.is_force_add()):
            parent = ".".join(path[:depth])
            raise CompositionError(f"{'.'.join(path)} cannot be set, because {parent} is null in this config", path)
        if known is None or isinstance(known, list):
            return  # added below a null, or inside a list, where Hydra reports the error
        if not isinstance(known, dict):
            raise CompositionError(f"{'.'.join(path[:depth])} is a value and has no key {name}", path)
        if depth == len(path) - 1 or name not in known:
            break
        known = known[name]
    parents, rest = path[:depth], path[depth:]
    if path[0] == "hydra":
        # A typed node of Hydra takes no other keys; a mapping such as hydra.job.env_set does.
        if rest[0] not in known and (
            not override.is_add() or OmegaConf.get_type(OmegaConf.select(config, ".".join(parents))) is not dict
        ):
            raise unknown_key(parents, rest[0], known, reader=reader)
        return
    if override.is_delete():
        if rest[0] not in known:
            raise unknown_key(parents, rest[0], known, reader=reader)
        if "_target_" not in known and ".".join(parents) not in NAMED_NODES:
            raise CompositionError(f"{'.'.join(path)} is required and cannot be removed; set another value", path)
        return
    adds = override.is_add() or override.is_force_add()
    value: Any = override.value()
    for name in reversed(rest[1:]):
        value = {name: value}
    typed = None if isinstance(override.value(), dict) else (override.input_line or "").partition("=")[2]
    check_change(known, {rest[0]: value}, parents, reader=reader, adds=adds, typed=typed)


def check_change(
    known: Config,
    change: Config,
    parents: Sequence[str] = (),
    *,
    reader: Reader,
    adds: bool,
    free: bool = False,
    typed: str | None = None,
) -> None:
    """Raise CompositionError unless a change sets known keys to values of the type that they replace.

    Args:
        known: node of the config, plain and unresolved.
        change: values to merge into the node.
        parents: path of the node.
        reader: what reads the node.
        adds: allow new keys where a later check covers them: arguments of a call, entries of a dict of named nodes.
        free: allow new keys everywhere.
        typed: the change as typed on the command line.
    """
    for name, value in change.items():
        path = [*parents, str(name)]
        default = known.get(name, MISSING)
        if isinstance(value, str) and "${" in value and not is_interpolation(value):
            raise CompositionError(
                f"{'.'.join(path)}: {value!r} is an incomplete interpolation; to write the text itself, use \\${{", path
            )
        if name not in known:
            if not free and not (adds and _is_open(known, parents, reader.command)):
                raise unknown_key(parents, str(name), known, value, reader=reader, typed=typed)
            if (
                tuple(parents) in MERGED_GROUPS
                and isinstance(value, dict)
                and "_target_" not in value
                and _is_option(path)
            ):
                raise unknown_key(parents, str(name), known, value, reader=reader, typed=typed)
        elif isinstance(default, dict) and isinstance(value, dict):
            inside = free or "_target_" in default
            check_change(default, value, path, reader=reader, adds=adds, free=inside and adds, typed=typed)
        elif not (value is None and ".".join(parents) in NAMED_NODES) and ".".join(path) not in UNTYPED_KEYS:
            like = float(default) if ".".join(path) in FRACTION_KEYS and isinstance(default, int) else default
            _check_kind(path, like, value, reader=reader, typed=typed)


def _is_open(node: Config, path: Sequence[str], command: str) -> bool:
    """Return whether new keys of a node are checked later, by the call that it configures or each as a separate node."""
    key = ".".join(path)
    return "_target_" in node or key in NAMED_NODES or key in SIGNATURE_NODES.get(command, ())


def _is_option(path: Sequence[str]) -> bool:
    return (CONFIG_DIR / path[0] / f"{path[1]}.yaml").is_file()


def unknown_key(
    parents: Sequence[str],
    name: str,
    known: Config,
    value: Any = None,
    *,
    reader: Reader,
    typed: str | None = None,
) -> CompositionError:
    """Return the error for an unknown key, with what to write instead or the keys that were probably meant.

    Args:
        parents: path of the node that does not have the key.
        name: the key.
        known: the node.
        value: value of the key; its typed text is `typed` if it is from the command line.
        reader: what reads the node.
    """
    key = ".".join([*parents, name])
    keys = [str(known_key) for known_key in known]
    if tuple(parents) in MERGED_GROUPS and _is_option([*parents, name]):
        text = f"{key} is not configured; this run has {', '.join(keys)}; add it with {parents[0]}={name}"
        return CompositionError(text, [*parents, name])
    if "." in name:
        text = f"unknown key {key}; in YAML, write `{name.split('.')[0]}:` with the rest indented below it"
        return CompositionError(text, [*parents, name])
    longest = key
    while isinstance(value, dict) and len(value) == 1:
        ((below, value),) = value.items()
        longest = f"{longest}.{below}"
    instead = replacement(reader.command, longest, text_of(value) if typed is None else typed, reader.config)
    if instead is not None:
        return CompositionError(f"unknown key {longest}; {instead}", [*parents, name])
    # Overlays such as experiment= are groups but not keys of the config.
    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()] if "trainer" in known else []
    if name in groups:
        return CompositionError(f"{key} takes an option and has no keys: {key}=NAME", [*parents, name])
    near = difflib.get_close_matches(name, sorted({*keys, *groups}), n=3)
    if near:
        text = f"unknown key {key}; did you mean {' or '.join('.'.join([*parents, match]) for match in near)}?"
        return CompositionError(text, [*parents, name])
    where = f"{'.'.join(parents)} has" if parents else "the keys and groups are"
    listed = ", ".join(sorted(k for k in keys if k != "hydra"))
    return CompositionError(f"unknown key {key}; {where} {listed}", [*parents, name])


def text_of(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check_kind(path: Sequence[str], default: Any, value: Any, *, reader: Reader, typed: str | None) -> None:
    if (
        default is None
        or default == MISSING
        or any(isinstance(text, str) and "${" in text for text in (default, value))
    ):
        return
    may_be_null = not isinstance(default, dict) and ".".join(path) not in REQUIRED_KEYS
    if may_be_null if value is None else _fits(value, default):
        return
    like, hint = f", like its default {default!r}", _hint(default, value)
    if isinstance(default, dict):
        instead = replacement(reader.command, ".".join(path), text_of(value) if typed is None else typed)
        like, hint = "", f"; {instead}" if instead else ""
    raise CompositionError(f"{'.'.join(path)} must be {_kind(default)}{like}; got {_shown(value)}{hint}", path)


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _hint(default: Any, value: Any) -> str:
    """Return a hint for a text that was meant as a number or a boolean, and for a single item of a list."""
    if isinstance(default, list) and not isinstance(value, list | dict | None):
        return f". Write [{text_of(value)}]"
    if not isinstance(value, str) or not isinstance(default, bool | int | float):
        return ""
    if is_number(value) or value.lower() in ("true", "false"):
        return ". Write it without quotes"
    return f". Write {value.replace(',', '.')}" if is_number(value.replace(",", ".")) else ""


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
    names = {bool: "true or false", int: "an integer", float: "a number", dict: "a mapping"}
    return names.get(type(default), "text")
