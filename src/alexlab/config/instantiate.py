"""A config node is the arguments of one call: found, checked against its signature, called. Imports no torch."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from alexlab.config.allowlist import check_found, check_target
from alexlab.errors import AlexlabError, ConfigError

Config = dict[str, Any]
WORDS = {bool: "true or false", int: "a whole number", float: "a number"}
KINDS = {kind.__name__: kind for kind in WORDS}
_NUMBER = r"[-+]?[\d.,]+(e[-+]?\d+)?"
TEXTS = {bool: "true|false|yes|no|on|off", int: _NUMBER, float: _NUMBER}  # that cannot be meant as a text


def locate(path: str, where: str) -> Callable[..., Any]:
    """The class or function of a `_target_`, if its node may name it."""
    check_target(path, where)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}._target_ must name a class or function that can be imported; got {path}: {error}"
        ) from error
    check_found(found, path, where)
    return found


def bind(target: Callable[..., Any], where: str, /, *args: Any, **keywords: Any) -> None:
    """Raises ConfigError unless `target` takes these arguments."""
    signature = inspect.signature(target)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    unknown = [name for name in keywords if name not in signature.parameters]
    if unknown and not open_ended:
        choices = [name for name in signature.parameters if name not in ("self", "params", "optimizer")]
        near = difflib.get_close_matches(unknown[0], choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{where}.{unknown[0]} is no argument of {target.__module__}.{target.__qualname__}; "
            f"it takes {', '.join(choices)}{hint}"
        )
    for name, value in keywords.items():
        if name in signature.parameters:
            _check_kind(
                signature.parameters[name], value, f"{where}.{name}", ours=target.__module__.startswith("alexlab.")
            )
    try:
        signature.bind(*args, **keywords)
    except TypeError as error:
        raise ConfigError(f"{where} does not fit {target.__module__}.{target.__qualname__}: {error}") from error


def _check_kind(parameter: inspect.Parameter, value: Any, where: str, *, ours: bool) -> None:
    """Raise ConfigError for a text in the place of a number or of true or false, and for a null that no annotation admits.

    In a file of one's own `lr: "0.1"`, `lr: 0,1` and `lr:` replace no default that would tell them to be wrong. Annotations
    of other packages are not always true: `value="random"` of torchvision's RandomErasing is a float there.
    """
    annotated = KINDS.get(str(getattr(parameter.annotation, "__name__", parameter.annotation)))
    kind = annotated or KINDS.get(type(parameter.default).__name__)
    if kind is None or (value is not None and not isinstance(value, str)):
        return
    if value is None:
        wrong = parameter.default is not None and not re.search("None|Optional", str(parameter.annotation))
    else:
        wrong = (annotated is not None and ours) or re.fullmatch(TEXTS[kind], value, re.IGNORECASE) is not None
    if wrong:
        raise ConfigError(f"{where} must be {WORDS[kind]}; got {'null' if value is None else repr(value)}")


def make(node: Config, where: str, /, *args: Any, **extra: Any) -> Any:
    """Calls the node's `_target_` with its other keys; nodes inside it are made first.

    Args:
        node: `_target_` and keyword arguments.
        where: the node's place in the config, for messages.
        args, extra: arguments that are no configuration.
    """
    target, keywords = parts(node, where)
    bind(target, where, *args, **{**keywords, **extra})
    try:
        return target(*args, **keywords, **extra)
    except AlexlabError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if text.startswith(where) or any(name in text for name in keywords):
            raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from error
        raise ConfigError(f"{_refused(target, where, args, keywords, extra)}: {text}") from error


def _refused(target: Callable[..., Any], where: str, args: Any, keywords: Config, extra: Config) -> str:
    """The key without which a call succeeds, with its value; the node where there is none."""
    for name, value in keywords.items():
        try:
            target(*args, **{key: other for key, other in keywords.items() if key != name}, **extra)
        except Exception:
            continue
        return f"{where}.{name}={'null' if value is None else value} cannot be used"
    return where


def parts(node: Config, where: str) -> tuple[Callable[..., Any], Config]:
    """What a node calls, and with which keyword arguments."""
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{where} must have a _target_, the class that it configures; got {node!r}")
    keywords = {name: value_of(value, f"{where}.{name}") for name, value in node.items() if name != "_target_"}
    return locate(node["_target_"], where), keywords


def value_of(value: Any, where: str) -> Any:
    """A value of a node: itself, or what it makes where it is a node or a list of them."""
    if isinstance(value, dict) and "_target_" in value:
        return make(value, where)
    if isinstance(value, list):
        return [value_of(item, f"{where}.{number}") for number, item in enumerate(value)]
    return value


def entries(nodes: Config) -> Config:
    """The nodes of a named dict; null leaves an entry out."""
    return {name: node for name, node in (nodes or {}).items() if node is not None}
