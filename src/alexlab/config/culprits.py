"""The key of a config that an error comes from: the one without which a check passes."""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import yaml

from alexlab.config import CONFIG_DIR
from alexlab.config.instantiate import Config
from alexlab.errors import ConfigError

PLAIN: dict[str, Config] = {
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 1e-3},
    "scheduler": {"_target_": "alexlab.training.schedules.constant"},
}


def explain(error: Exception, config: Config, check: Callable[[Config], Any]) -> NoReturn:
    """Raise a ConfigError that names the key without which a check succeeds, or the error where there is none."""
    keys = culprits(config, str(error), check)
    if keys:
        raise ConfigError(f"{keys} cannot be used: {sentence(error)}") from error
    raise error


def culprits(config: Config, text: str, check: Callable[[Config], Any]) -> str:
    """Return the keys, with their values, each of which makes a config pass where it has its default; "" for none.

    Args:
        config: one that does not pass.
        text: of the error; keys and values that it names are tried first.
        check: raises an error for a config that does not pass.
    """

    def passes(changed: Config) -> bool:
        try:
            check(changed)
        except Exception:
            return False
        return True

    groups = list(_groups(config))
    keys = [key for _, _, keys in groups for key in keys]
    found = [words for words, changed in keys if _is_named(words, text) and passes(changed)]
    if not found:
        for words, whole, keys in groups:
            if passes(whole):
                found += [key for key, changed in keys if passes(changed)] or [words]
    return " with ".join(found[:3])


def _is_named(key: str, text: str) -> bool:
    path, _, value = key.partition("=")
    return any(len(word) > 1 and word in text for word in (path.rpartition(".")[2], value))


def sentence(error: Exception) -> str:
    """Return what an error says, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _groups(config: Config) -> Iterator[tuple[str, Config, list[tuple[str, Config]]]]:
    """Yield the parts of a config, each with a config that has the defaults there, and one such for each of its keys.

    Parts and keys come with the words that name them.
    """
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
    for group, node in PLAIN.items():
        yield _part(config, group, node, {key: node[key] for key in node if key == "lr"})
    yield f"seed={_shown(config['seed'])}", {**config, "seed": 1}, []
    for group in ("callbacks", "augmentation.batch"):
        outer, _, inner = group.partition(".")
        for name, node in ((config[outer][inner] if inner else config[outer]) or {}).items():
            if node is not None:
                yield _part(config, f"{group}.{name}", None, {})


def _part(config: Config, where: str, whole: Any, defaults: Config) -> tuple[str, Config, list[tuple[str, Config]]]:
    """Return the words of a part, the config with `whole` in its place, and configs with one key reset or left out."""
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
        words = " with ".join(key for key, _ in keys)
    else:
        words = f"{where}={node.get('_target_')}" if where in PLAIN else where
    return words, _with(config, where, whole), keys


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _with(config: Config, where: str, value: Any) -> Config:
    outer, _, inner = where.partition(".")
    return {**config, outer: _with(config[outer], inner, value) if inner else value}
