"""Allow-list of the classes that a config may instantiate.

A config may come from somebody else, in a checkpoint or a run folder. Every `_target_` is checked before anything is imported:
its key must take a class, its name must be in the packages allowed for that key, and the object must have the right type. Other
classes need `--config-dir=DIR` or `trusted_targets=[mypackage]` on the command line, which no config can set.
"""

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from alexlab.errors import ConfigError
from alexlab.output.command_line import repeat_option

FLAG = "trusted_targets="
ALLOWED = {
    "model": ("alexlab.models",),
    "module": ("alexlab.training.module",),
    "optimizer": ("torch.optim", "alexlab.training.optimizers"),
    "scheduler": ("alexlab.training.schedules", "torch.optim.lr_scheduler"),
    "loss": ("alexlab.training.losses",),
    "augmentation": ("torchvision.transforms.v2", "alexlab.data.transforms"),
    "callbacks": (
        "lightning.pytorch.callbacks",
        "alexlab.training.callbacks",
        "alexlab.sweeps.pruning",
    ),
    "metrics": ("torchmetrics.classification",),
    "data": (),
    "logger": ("lightning.pytorch.loggers", "alexlab.training.loggers"),
    "trainer": tuple(f"lightning.pytorch.{name}" for name in ("profilers", "strategies", "plugins")),
}
# Keys that take a class. Arguments of a class are plain values, except that a transform may contain other transforms.
KEYS = re.compile(
    r"model|module|optimizer|scheduler|loss|data\.dataset|metrics\.[^.]+|augmentation\.(train|eval|batch)\.[^.]+(\..+)?|callbacks\.[^.]+|logger\.[^.]+"
    r"|trainer\.(profiler|strategy|plugins(\.\d+)?)"
)
# Base class of a class, or of what a function returns, by key or group.
BASES = {
    "model": "torch.nn.Module",
    "module": "alexlab.training.module.Classifier",
    "metrics": "torchmetrics.Metric",
    "optimizer": "torch.optim.Optimizer",
    "loss": "torch.nn.Module",
    "augmentation": "torch.nn.Module",
    "callbacks": "lightning.pytorch.callbacks.Callback",
    "logger": "lightning.pytorch.loggers.logger.Logger",
    "trainer.profiler": "lightning.pytorch.profilers.Profiler",
    "trainer.strategy": "lightning.pytorch.strategies.Strategy",
}
NAMES = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")  # no private names

MAX_NODES = 20_000  # maximum number of entries of a config; ours have about 300

_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())  # packages of `trusted_targets=`


def trusted() -> tuple[str, ...]:
    """Return the packages that the command line trusts."""
    return _trusted.get()


def trust(*packages: str) -> None:
    """Trust more packages."""
    _trusted.set((*_trusted.get(), *packages))


def pop_trusted_targets(arguments: Sequence[str]) -> list[str]:
    """Trust the packages of `trusted_targets=[...]` and return the other arguments.

    Raises:
        ConfigError: if it is not a list of names.
    """
    for argument in arguments:
        if argument.startswith(FLAG):
            try:
                (parsed,) = OverridesParser.create().parse_overrides([argument])
                names = parsed.value()
            except HydraException:
                names = None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"trusted_targets must be a list of packages: {FLAG}[mypackage]; got {argument}")
            trust(*names)
            repeat_option(*argument.split("=", 1))
    return [argument for argument in arguments if not argument.startswith(FLAG)]


def check_targets(config: dict[str, Any]) -> None:
    """Check every `_target_` of a config without importing anything.

    Raises:
        ConfigError: for the first target that is not allowed.
    """
    for number, (where, target) in enumerate(nodes(config, "")):
        if number > MAX_NODES:
            raise ConfigError(f"a config must have at most {MAX_NODES:,} entries; {where} exceeds the limit")
        if where.rpartition(".")[2] == "_target_":
            check_target(target, where.rpartition(".")[0])


def nodes(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of a nested config."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in children:
        key = f"{where}.{name}" if where else str(name)
        yield key, value
        yield from nodes(value, key)


def check_target(target: Any, where: str) -> None:
    """Raise ConfigError unless the node `where` may have this target."""
    group = where.split(".")[0]
    if not isinstance(target, str) or not NAMES.fullmatch(target):
        raise ConfigError(f"{where}._target_ must name a class or function that can be imported; got {target!r}")
    if _is_trusted(target):
        return
    if not KEYS.fullmatch(where):
        raise ConfigError(
            f"{where}._target_ must not be set: only {', '.join(ALLOWED)} take a class, and its arguments are plain values; "
            f"got {target}"
        )
    if not _is_in(target, ALLOWED[group]):
        package = target.split(".")[0]
        allowed = ", ".join((*ALLOWED[group], *trusted())) or "your own code"
        raise ConfigError(
            f"{where}._target_ must be in {allowed}; got {target}. If it is your own code, add "
            f"--config-dir=DIR, the folder that contains {package}.py; for an installed package add {FLAG}[{package}]"
        )


def check_resolved(found: Any, target: str, where: str) -> None:
    """Raise ConfigError unless the object of an allowed name belongs to its package and has the type that `where` takes."""
    if target in trusted():
        return
    group = where.split(".")[0]
    base_name = BASES.get(where, BASES.get(group)) if KEYS.fullmatch(where) else None
    if base_name is not None:
        module, _, name = base_name.rpartition(".")
        base = getattr(importlib.import_module(module), name)
        created = found if inspect.isclass(found) else _returned(found)
        if not inspect.isclass(created) or not issubclass(created, base):
            raise ConfigError(
                f"{where}._target_ must be a {base_name}, or a function annotated to return one; {target} is not"
            )
    home = getattr(found, "__module__", None) or ""
    packages = trusted() if _is_trusted(target) else ALLOWED[group]
    if not callable(found) or not _is_in(f"{home}.", packages):
        raise ConfigError(
            f"{where}._target_ must name a class or function of its package; {target} is defined in {home or 'no package'}"
        )


def _returned(function: Any) -> Any:
    """Return the annotation of what a function returns, or None."""
    try:
        return get_type_hints(function).get("return")
    except (TypeError, NameError):
        return None


def _is_trusted(target: str) -> bool:
    return target in trusted() or _is_in(target, trusted())


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)
