"""The metric that decides which epoch of a run, and which run, is the best."""

import math
from ctypes import c_float
from dataclasses import dataclass, fields
from typing import Any

VAL = "val/"
MODES = {"top1": "max", "top5": "max", "loss": "min"}  # of the metrics that every run has


@dataclass(frozen=True)
class OptimizedMetric:
    """The metric of `optimized_metric=`.

    Args:
        name: a metric of the validation split, such as `val/top1`.
        mode: `max` if a higher value is better, else `min`.
    """

    name: str = "val/top1"
    mode: str = "max"

    @property
    def key(self) -> str:
        """The name without the split, as in the best scores of a run."""
        return self.name.removeprefix(VAL)

    @property
    def is_accuracy(self) -> bool:
        """True for a fraction of the images."""
        return self.key in ("top1", "top5")

    @property
    def title(self) -> str:
        """The name on the axis of a plot."""
        return metric_title(self.key) + " accuracy" * self.is_accuracy

    @property
    def superlative(self) -> str:
        return "highest" if self.mode == "max" else "lowest"

    def rank(self, value: float | None, loss: float | None) -> tuple[float, float]:
        """Return a sort key that is higher for better values; equal values are ranked by the loss, and NaN or None is the worst.

        Both are compared in 32 bits, the precision in which Lightning stores logged metrics.
        """
        return _rank(value, self.mode), _rank(loss, "min")


def metric_label(key: str) -> str:
    """Return the name of a metric in text: `top-1` for `top1`."""
    return {"top1": "top-1", "top5": "top-5"}.get(key, key)


def metric_title(key: str) -> str:
    """Return the name of a metric as the head of a column: `Top-1` for `top1`."""
    label = metric_label(key).replace("_", " ")
    return label[:1].upper() + label[1:]


def _rank(value: float | None, mode: str) -> float:
    if value is None or math.isnan(value):
        return -math.inf
    return c_float(value if mode == "max" else -value).value


def is_optimized_metric(value: Any) -> bool:
    """Return whether plain data, from a run record, describes an OptimizedMetric."""
    return (
        isinstance(value, dict)
        and value.keys() == {field.name for field in fields(OptimizedMetric)}
        and all(isinstance(item, str) for item in value.values())
        and value["name"].startswith(VAL)
        and value["mode"] in ("max", "min")
    )
