"""Config nodes as calls: resolve `_target_`, check the arguments against its signature, call it."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from alexlab.config.allowlist import check_resolved, check_target
from alexlab.errors import AlexlabError, ConfigError

Config = dict[str, Any]
TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number"}
KINDS = {kind.__name__: kind for kind in TYPE_NAMES}
_NUMBER = r"[-+]?[\d.,]+(e[-+]?\d+)?"
TEXTS = {bool: "true|false|yes|no|on|off", int: _NUMBER, float: _NUMBER}  # strings that were meant as another type


def locate(path: str, where: str) -> Callable[..., Any]:
    """Return the class or function of a `_target_`, if the allow-list permits it."""
    check_target(path, where)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}._target_ must name a class or function that can be imported; got {path}: {error}"
        ) from error
    check_resolved(found, path, where)
    return found


def bind(target: Callable[..., Any], where: str, /, *args: Any, **keywords: Any) -> None:
    """Raise ConfigError unless `target` accepts these arguments."""
    signature = inspect.signature(target)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    unknown = [name for name in keywords if name not in signature.parameters]
    if unknown and not open_ended:
        choices = [name for name in signature.parameters if name not in ("self", "params", "optimizer")]
        near = difflib.get_close_matches(unknown[0], choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{where}.{unknown[0]} is not an argument of {target.__module__}.{target.__qualname__}; "
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
    """Raise ConfigError for a string instead of a number or boolean, and for a null that the annotation does not allow.

    In a user's YAML file, `lr: "0.1"`, `lr: 0,1` and `lr:` replace no default that would show the type. Annotations of other
    packages are not always right: torchvision's RandomErasing takes `value="random"` but annotates a float.
    """
    if ours and value is not None:
        _check_optional(parameter.annotation, value, where)
    annotated = KINDS.get(str(getattr(parameter.annotation, "__name__", parameter.annotation)))
    kind = annotated or KINDS.get(type(parameter.default).__name__)
    if kind is None or (value is not None and not isinstance(value, str)):
        return
    if value is None:
        wrong = parameter.default is not None and not re.search("None|Optional", str(parameter.annotation))
    else:
        wrong = (annotated is not None and ours) or re.fullmatch(TEXTS[kind], value, re.IGNORECASE) is not None
    if wrong:
        raise ConfigError(f"{where} must be {TYPE_NAMES[kind]}; got {'null' if value is None else repr(value)}")


def _check_optional(annotation: Any, value: Any, where: str) -> None:
    """Raise ConfigError for a value that `int | None`, `Sequence[float] | None` and the like do not allow.

    Their default is usually null, so that nothing else shows the type.
    """
    members = [member for member in get_args(annotation) if member is not NoneType]
    if not isinstance(annotation, UnionType) or len(members) != 1:
        return
    (member,) = members
    if member in TYPE_NAMES:
        fits, expected = _is_kind(value, member), TYPE_NAMES[member]
    elif get_origin(member) is Sequence and get_args(member)[0] in (int, float):
        (kind,) = get_args(member)
        fits = (
            isinstance(value, Sequence) and not isinstance(value, str) and all(_is_kind(each, kind) for each in value)
        )
        expected = f"a list of {'integers' if kind is int else 'numbers'}"
    else:
        return
    if not fits:
        raise ConfigError(f"{where} must be null or {expected}; got {value!r}")


def _is_kind(value: Any, kind: type) -> bool:
    """Return whether a value is of a kind of TYPE_NAMES: no boolean is a number, but an integer is."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def make(node: Config, where: str, /, *args: Any, **extra: Any) -> Any:
    """Instantiate a node: call its `_target_` with its other keys, after instantiating nested nodes.

    Args:
        node: `_target_` and keyword arguments.
        where: key of the node, for messages.
        args: positional arguments that do not come from the config.
        extra: keyword arguments that do not come from the config.
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
    """Return the key without which the call succeeds, with its value, or else the key of the node."""
    for name, value in keywords.items():
        try:
            target(*args, **{key: other for key, other in keywords.items() if key != name}, **extra)
        except Exception:
            continue
        return f"{where}.{name}={'null' if value is None else value} cannot be used"
    return where


def parts(node: Config, where: str) -> tuple[Callable[..., Any], Config]:
    """Return the target of a node and its keyword arguments."""
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{where} must have a _target_, the class to instantiate; got {node!r}")
    keywords = {name: value_of(value, f"{where}.{name}") for name, value in node.items() if name != "_target_"}
    return locate(node["_target_"], where), keywords


def value_of(value: Any, where: str) -> Any:
    """Return a value of a node, instantiated if it is a node or a list of nodes."""
    if isinstance(value, dict) and "_target_" in value:
        return make(value, where)
    if isinstance(value, list):
        return [value_of(item, f"{where}.{number}") for number, item in enumerate(value)]
    return value


def entries(nodes: Config) -> Config:
    """Return the nodes of a dict of named nodes without null entries."""
    return {name: node for name, node in (nodes or {}).items() if node is not None}
