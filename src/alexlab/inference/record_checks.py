"""Checks of a checkpoint's record, which is untrusted, before a network is built from it."""

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from torch import nn

from alexlab.models.weights.state_dicts import State

MAX_SIZE = 4096  # pixels; larger sides in an untrusted config are rejected


def check_sizes(config: Any) -> None:
    """Raise ValueError if an image size is so large that a single image would take gigabytes."""
    pending = [config["data"]["image_size"], config["augmentation"]["eval"]]
    for node in pending:
        if isinstance(node, int | float) and not node <= MAX_SIZE:
            raise ValueError(f"images must be at most {MAX_SIZE} pixels wide; got {node}")
        if isinstance(node, dict | list):
            pending.extend(node.values() if isinstance(node, dict) else node)


def check_types(target: Any, where: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError if a value does not have the type that `target` declares for that argument.

    Args:
        target: a class or function with type hints.
        where: config node, for the message.
        values: arguments.
    """
    for name, hint in get_type_hints(target).items():
        kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else [hint])]
        accepted = (*kinds, int) if float in kinds else tuple(kinds)
        if name in values and not isinstance(values[name], accepted):
            expected = " | ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{where}.{name} must be a {expected}; got {type(values[name]).__name__}")


def check_head(net: nn.Module, state: State, classes: Sequence[str]) -> None:
    """Raise ValueError if the last layer of the file does not have one output per class."""
    expected, given = (
        [value for value in tensors.values() if value.dim() > 1] for tensors in (net.state_dict(), state)
    )
    if not expected or not given or expected[-1].shape[1:] != given[-1].shape[1:]:
        return
    if len(expected[-1]) != len(given[-1]):
        raise ValueError(f"it names {len(classes)} classes, but its last layer has {len(given[-1])} outputs")
