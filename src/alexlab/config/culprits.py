"""Search for the config key that causes an error: the key without which a check passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from alexlab.config import CONFIG_DIR
from alexlab.config.instantiate import Config
from alexlab.errors import AlexlabError, ConfigError

SIMPLEST: dict[str, Config] = {
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 1e-3},
    "scheduler": {"_target_": "alexlab.training.schedules.constant"},
}


@contextmanager
def naming_keys(config: Config, check: Callable[[Config], Any]) -> Iterator[None]:
    """Turn an unexpected error into a ConfigError that names the key without which `check` passes, if there is one."""
    try:
        yield
    except AlexlabError:
        raise
    except Exception as error:
        keys = culprits(config, str(error), check)
        if keys:
            raise ConfigError(f"{keys} cannot be used: {sentence(error)}") from error
        raise


def culprits(config: Config, text: str, check: Callable[[Config], Any]) -> str:
    """Return the keys, with their values, each of which makes a failing config pass if set to its default; "" for none.

    Args:
        config: config for which `check` fails.
        text: error message; keys and values in it are tried first.
        check: function that raises an error for an unusable config.
    """

    def passes(changed: Config) -> bool:
        try:
            check(changed)
        except Exception:
            return False
        return True

    groups = list(_groups(config))
    keys = [key for _, _, keys in groups for key in keys]
    found = [name for name, changed in keys if _is_named(name, text) and passes(changed)]
    if not found:
        for name, whole, keys in groups:
            if passes(whole):
                found += [key for key, changed in keys if passes(changed)] or [name]
    return " with ".join(found[:3])


def _is_named(key: str, text: str) -> bool:
    path, _, value = key.partition("=")
    return any(len(part) > 1 and part in text for part in (path.rpartition(".")[2], value))


def sentence(error: Exception) -> str:
    """Return the message of an error on one line, truncated to 400 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _groups(config: Config) -> Iterator[tuple[str, Config, list[tuple[str, Config]]]]:
    """Yield the parts of a config: a name, the config with defaults for the part, and such configs for each of its keys."""
    files = {"trainer": "trainer/default.yaml", "data": "data/folder.yaml"}
    defaults = {group: yaml.safe_load((CONFIG_DIR / path).read_text()) for group, path in files.items()}
    whole = yaml.safe_load((CONFIG_DIR / "train.yaml").read_text())
    defaults |= {group: whole[group] for group in ("compile", "elastic", "param_groups", "test")}
    for group in (*defaults, "model", "loss"):
        own = {
            key: default
            for key, default in defaults.get(group, {}).items()
            if not (isinstance(default, str) and default.startswith(("$", "?")))
        }
        required = {key: value for key, value in (config[group] or {}).items() if key == "_target_" or key not in own}
        other = required if group == "data" else {key: required[key] for key in required if key == "_target_"}
        yield _part(config, group, {**other, **own}, own)
    for group, node in SIMPLEST.items():
        yield _part(config, group, node, {key: node[key] for key in node if key == "lr"})
    yield f"seed={_shown(config['seed'])}", {**config, "seed": 1}, []
    for group in ("callbacks", "augmentation.batch"):
        outer, _, inner = group.partition(".")
        for name, node in ((config[outer][inner] if inner else config[outer]) or {}).items():
            if node is not None:
                yield _part(config, f"{group}.{name}", None, {})


def _part(config: Config, where: str, whole: Any, defaults: Config) -> tuple[str, Config, list[tuple[str, Config]]]:
    """Return the name of a part, the config with the part replaced by `whole`, and configs with one key reset or removed."""
    node: Any = config
    for name in where.split("."):
        node = node[name]
    keys = []
    for key, value in (node or {}).items():
        if key == "_target_" or (key in defaults and defaults[key] == value):
            continue
        changed = {name: other for name, other in node.items() if name != key}
        changed |= {key: defaults[key]} if key in defaults else {}
        keys.append((f"{where}.{key}={_shown(value)}", _with(config, where, changed)))
    if where == "trainer":
        name = " with ".join(key for key, _ in keys)
    else:
        name = f"{where}={node.get('_target_')}" if where in SIMPLEST else where
    return name, _with(config, where, whole), keys


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _with(config: Config, where: str, value: Any) -> Config:
    outer, _, inner = where.partition(".")
    return {**config, outer: _with(config[outer], inner, value) if inner else value}
