"""Checks of overrides and config files: every key must be read by the command, every value of the right type."""

import difflib
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from alexlab.config import CONFIG_DIR
from alexlab.config.grammar import is_interpolation
from alexlab.errors import ConfigError

# A value must have the type of the default that it replaces, except for keys that take several types.
UNTYPED_KEYS = (
    *("trainer.devices", "trainer.fast_dev_run", "trainer.deterministic", "trainer.strategy"),
    "callbacks.finetune.freeze",
)
# Groups whose options are merged, so that a missing entry belongs to an option that was not selected.
MERGED_GROUPS = (("callbacks",), ("logger",), ("metrics",))
# Dicts of named nodes; null removes an entry.
NAMED_NODES = ("callbacks", "logger", "metrics", "augmentation.train", "augmentation.eval", "augmentation.batch")
# Nodes that do not list every argument, and the commands that check them against the signature.
_DATA = ("data", "data.pack", "data.stream")
SIGNATURE_NODES = {"train": _DATA, "benchmark": _DATA}
MISSING = "???"

Config = dict[str, Any]


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
    path = override.key_or_group.split(".")
    for depth, name in enumerate(path):
        if known is None or isinstance(known, list):
            return  # below a null or inside a list, where Hydra reports the error
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
            raise unknown_key(parents, rest[0], list(known))
        return
    if override.is_delete():
        if rest[0] in known and "_target_" not in known and ".".join(parents) not in NAMED_NODES:
            raise CompositionError(f"{'.'.join(path)} is required and cannot be removed; set another value", path)
        return
    adds = override.is_add() or override.is_force_add()
    value: Any = override.value()
    for name in reversed(rest[1:]):
        value = {name: value}
    check_change(known, {rest[0]: value}, parents, command=command, adds=adds)


def check_change(
    known: Config, change: Config, parents: Sequence[str] = (), *, command: str, adds: bool, free: bool = False
) -> None:
    """Raise CompositionError unless a change sets known keys to values of the type that they replace.

    Args:
        known: node of the config, plain and unresolved.
        change: values to merge into the node.
        parents: path of the node.
        command: command that reads the node.
        adds: allow new keys where a later check covers them: arguments of a call, entries of a dict of named nodes.
        free: allow new keys everywhere.
    """
    for name, value in change.items():
        path = [*parents, str(name)]
        default = known.get(name, MISSING)
        if isinstance(value, str) and "${" in value and not is_interpolation(value):
            raise CompositionError(
                f"{'.'.join(path)}: {value!r} is an incomplete interpolation; to write the text itself, use \\${{", path
            )
        if name not in known:
            if not free and not (adds and _is_open(known, parents, command)):
                raise unknown_key(parents, str(name), [str(key) for key in known])
            if (
                tuple(parents) in MERGED_GROUPS
                and isinstance(value, dict)
                and "_target_" not in value
                and _is_option(path)
            ):
                raise unknown_key(parents, str(name), [str(key) for key in known])
        elif isinstance(default, dict) and isinstance(value, dict):
            inside = free or "_target_" in default
            check_change(default, value, path, command=command, adds=adds, free=inside and adds)
        elif not (value is None and ".".join(parents) in NAMED_NODES) and ".".join(path) not in UNTYPED_KEYS:
            _check_kind(path, default, value)


def _is_open(node: Config, path: Sequence[str], command: str) -> bool:
    """Return whether new keys of a node are checked later, by the call that it configures or each as a separate node."""
    key = ".".join(path)
    return "_target_" in node or key in NAMED_NODES or key in SIGNATURE_NODES.get(command, ())


def _is_option(path: Sequence[str]) -> bool:
    return (CONFIG_DIR / path[0] / f"{path[1]}.yaml").is_file()


def unknown_key(parents: Sequence[str], name: str, known: Sequence[str]) -> CompositionError:
    """Return the error for an unknown key, with the keys that were probably meant."""
    key = ".".join([*parents, name])
    if tuple(parents) in MERGED_GROUPS and _is_option([*parents, name]):
        text = f"{key} is not configured; this run has {', '.join(known)}; add it with {parents[0]}={name}"
        return CompositionError(text, [*parents, name])
    if "." in name:
        text = f"unknown key {key}; in YAML, write `{name.split('.')[0]}:` with the rest indented below it"
        return CompositionError(text, [*parents, name])
    # Overlays such as experiment= are groups but not keys of the config.
    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()] if "trainer" in known else []
    near = difflib.get_close_matches(name, sorted({*known, *groups}), n=3)
    if near:
        text = f"unknown key {key}; did you mean {' or '.join('.'.join([*parents, match]) for match in near)}?"
        return CompositionError(text, [*parents, name])
    where = f"{'.'.join(parents)} has" if parents else "the keys and groups are"
    listed = ", ".join(sorted(k for k in known if k != "hydra"))
    return CompositionError(f"unknown key {key}; {where} {listed}", [*parents, name])


def _check_kind(path: Sequence[str], default: Any, value: Any) -> None:
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
        f"{'.'.join(path)} must be {_kind(default)}{like}; got {_shown(value)}{_hint(default, value)}", path
    )


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _hint(default: Any, value: Any) -> str:
    """Return a hint for a text that was meant as a number or a boolean."""
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
