"""The classes that a config may name, and the places where it may name one. Imports nothing that a config names.

A config may come from a stranger, in a checkpoint or a run folder. Every `_target_` is checked before anything is imported: it
must stand at a place that takes a class, lie in the packages of that place, and turn out to be of the right kind. Other classes
need `trusted_targets=[mypackage]` on the command line, which no config can set.
"""

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from alexlab.errors import ConfigError

WORD = "trusted_targets="
ALLOWED = {
    "model": ("alexlab.models",),
    "optimizer": ("torch.optim",),
    "scheduler": ("alexlab.training.schedules",),
    "loss": ("alexlab.training.losses",),
    "augmentation": ("torchvision.transforms.v2", "alexlab.data.transforms"),
    "callbacks": (
        "lightning.pytorch.callbacks",
        "alexlab.training.callbacks",
        "alexlab.sweeps.pruning",
    ),
    "logger": ("lightning.pytorch.loggers", "alexlab.training.loggers"),
    "trainer": tuple(f"lightning.pytorch.{name}" for name in ("profilers", "strategies", "plugins")),
}
# The nodes that take a class, as regular expressions. The arguments of a class are plain values, except that a transform may
# hold other transforms.
PLACES = re.compile(
    r"model|optimizer|scheduler|loss|augmentation\.(train|eval|batch)\.[^.]+(\..+)?|callbacks\.[^.]+|logger\.[^.]+"
    r"|trainer\.(profiler|strategy|plugins(\.\d+)?)"
)
# What a function must return, or a class must be, by the place or its group.
KINDS = {
    "model": "torch.nn.Module",
    "optimizer": "torch.optim.Optimizer",
    "loss": "torch.nn.Module",
    "augmentation": "torch.nn.Module",
    "callbacks": "lightning.pytorch.callbacks.Callback",
    "logger": "lightning.pytorch.loggers.logger.Logger",
    "trainer.profiler": "lightning.pytorch.profilers.Profiler",
    "trainer.strategy": "lightning.pytorch.strategies.Strategy",
}
NAMES = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")  # no name of them is private

MAX_NODES = 20_000  # entries of a config; an own one has some 300

trusted: list[str] = []  # packages that the command line trusts


def without_trust(arguments: Sequence[str]) -> list[str]:
    """Takes `trusted_targets=[...]` out of a command line, and trusts those packages.

    Raises:
        ConfigError: when it is no list of names.
    """
    for argument in arguments:
        if argument.startswith(WORD):
            try:
                (parsed,) = OverridesParser.create().parse_overrides([argument])
                names = parsed.value()
            except HydraException:
                names = None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"trusted_targets must be a list of packages: {WORD}[mypackage]; got {argument}")
            trusted.extend(names)
    return [argument for argument in arguments if not argument.startswith(WORD)]


def check_targets(config: dict[str, Any]) -> None:
    """Looks at every `_target_` of a config, without importing anything.

    Raises:
        ConfigError: for the first one that may not be named.
    """
    for number, (where, target) in enumerate(_nodes(config, "")):
        if number > MAX_NODES:
            raise ConfigError(f"a config must have at most {MAX_NODES:,} entries; {where} is one too many")
        if where.rpartition(".")[2] == "_target_":
            check_target(target, where.rpartition(".")[0])


def _nodes(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Everything in a config, with its place."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in children:
        place = f"{where}.{name}" if where else str(name)
        yield place, value
        yield from _nodes(value, place)


def check_target(target: Any, where: str) -> None:
    """Raise ConfigError unless the node at `where` may name this class."""
    group = where.split(".")[0]
    if not isinstance(target, str) or not NAMES.fullmatch(target):
        raise ConfigError(f"{where}._target_ must name a class or function that can be imported; got {target!r}")
    if _is_trusted(target):
        return
    if not PLACES.fullmatch(where):
        raise ConfigError(
            f"{where}._target_ must not be set: only {', '.join(ALLOWED)} take a class, and its arguments are plain values; "
            f"got {target}"
        )
    if not _lies_in(target, ALLOWED[group]):
        raise ConfigError(
            f"{where}._target_ must lie in {', '.join((*ALLOWED[group], *trusted))}; got {target}. "
            f"A package of your own needs {WORD}[{target.split('.')[0]}] on the command line"
        )


def check_found(found: Any, target: str, where: str) -> None:
    """Raise ConfigError unless the object found under an allowed name is of the kind that its place takes."""
    if _is_trusted(target):
        return
    group = where.split(".")[0]
    kind = KINDS.get(where, KINDS.get(group))
    if kind is not None:
        module, _, name = kind.rpartition(".")
        base = getattr(importlib.import_module(module), name)
        made = found if inspect.isclass(found) else getattr(found, "__annotations__", {}).get("return")
        if not inspect.isclass(made) or not issubclass(made, base):
            raise ConfigError(f"{where}._target_ must be a {kind}; {target} is not")
    home = getattr(found, "__module__", None) or ""
    if not callable(found) or not _lies_in(f"{home}.", ALLOWED[group]):
        raise ConfigError(
            f"{where}._target_ must name a class or function of its package; {target} belongs to {home or 'no package'}"
        )


def _is_trusted(target: str) -> bool:
    return target in trusted or _lies_in(target, trusted)


def _lies_in(name: str, packages: Iterable[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)
