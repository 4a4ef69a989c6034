"""The import of torchmetrics."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any


@contextmanager
def light_torchmetrics() -> Iterator[None]:
    """Import torchmetrics in this context without `scipy.signal` and matplotlib; its plots import matplotlib when they are drawn.

    Works around: torchmetrics, which Lightning imports, imports both at its top, for audio metrics and for plots: 1.6 s. It only
    asks `scipy.signal` for `hamming`, to add it for another audio package. Checked with torchmetrics 1.9.0.
    """
    stand_ins: dict[str, dict[str, Any]] = {
        "scipy.signal": {"hamming": None},
        "matplotlib": {"colors": SimpleNamespace(Colormap=object)},
        "matplotlib.axes": {"Axes": _Axes},
        "matplotlib.pyplot": {
            "Figure": object,
            "style": SimpleNamespace(context=_plot_style),
            "__getattr__": _pyplot_attribute,
        },
    }
    if sys.modules.keys() & {"torchmetrics", *stand_ins}:
        yield
        return
    for name, attributes in stand_ins.items():
        module = sys.modules[name] = ModuleType(name)
        module.__dict__.update(attributes, __spec__=ModuleSpec(name, None))
        parent, _, child = name.rpartition(".")
        if parent in stand_ins:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


class _IsAxes(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, importlib.import_module("matplotlib.axes").Axes)


class _Axes(metaclass=_IsAxes):
    """Stand-in for matplotlib's Axes in annotations and `isinstance`."""


@contextmanager
def _plot_style(style: Any) -> Iterator[None]:
    with importlib.import_module("matplotlib.style").context(style):
        yield


def _pyplot_attribute(name: str) -> Any:
    if name.startswith("__"):  # `inspect` asks every module for its file
        raise AttributeError(name)
    return getattr(importlib.import_module("matplotlib.pyplot"), name)
