"""Which classes a config may name. Imports nothing that a config names.

A config may come from a stranger, in a checkpoint or a run folder. So every `_target_` is looked at before anything is
imported: it must lie in the packages that its node is for, and what is found there must be of the node's kind. Others need
`trusted_targets=[mypackage]` on the command line, which is no key of any config.
"""

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from alexlab.errors import ConfigError

WORD = "trusted_targets="
ALLOWED = {
    "model": ("alexlab.models",),
    "optimizer": ("torch.optim",),
    "scheduler": ("alexlab.schedules",),
    "loss": ("alexlab.losses",),
    "augmentation": ("torchvision.transforms.v2", "alexlab.data.transforms"),
    "callbacks": (
        "lightning.pytorch.callbacks",
        *(f"alexlab.{name}" for name in ("callbacks", "checkpoints", "finetuning", "pruning")),
    ),
    "logger": ("lightning.pytorch.loggers", "alexlab.loggers"),
    "trainer": tuple(f"lightning.pytorch.{name}" for name in ("profilers", "strategies", "plugins")),
}
KINDS = {
    "optimizer": "torch.optim.Optimizer",
    "loss": "torch.nn.Module",
    "augmentation": "torch.nn.Module",
    "callbacks": "lightning.pytorch.callbacks.Callback",
    "logger": "lightning.pytorch.loggers.logger.Logger",
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
    """Raises ConfigError unless the node at `where` may name this class."""
    group = where.split(".")[0]
    if not isinstance(target, str) or not NAMES.fullmatch(target):
        raise ConfigError(f"{where}._target_ must name a class or function that can be imported; got {target!r}")
    allowed = (*ALLOWED.get(group, ()), *trusted)
    if not any(target.startswith(f"{package}.") for package in allowed):
        raise ConfigError(
            f"{where}._target_ must lie in {', '.join(allowed) or 'nothing'}; got {target}. "
            f"A package of your own needs {WORD}[{target.split('.')[0]}] on the command line"
        )


def check_found(found: Any, target: str, where: str) -> None:
    """Raises ConfigError unless what was found under an allowed name is of the node's kind, and no name for something else."""
    group = where.split(".")[0]
    if any(target.startswith(f"{package}.") for package in trusted):
        return
    kind = KINDS.get(group)
    if kind is not None:
        module, _, name = kind.rpartition(".")
        base = getattr(importlib.import_module(module), name)
        if not inspect.isclass(found) or not issubclass(found, base):
            raise ConfigError(f"{where}._target_ must be a {kind}; {target} is none")
    home = getattr(found, "__module__", None) or ""
    if not callable(found) or not any(f"{home}.".startswith(f"{package}.") for package in ALLOWED[group]):
        raise ConfigError(
            f"{where}._target_ must name a class or function of its package; {target} is of {home or 'none'}"
        )
