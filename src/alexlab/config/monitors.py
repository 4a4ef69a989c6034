"""The metrics that decide: the optimized metric, and what callbacks and the scheduler monitor."""

from collections.abc import Sequence

from alexlab.config import CONFIG_DIR
from alexlab.config.instantiate import Config, entries, parts
from alexlab.errors import ConfigError
from alexlab.records.optimized import MODES, VAL, OptimizedMetric

TRAIN_METRICS = ("train/loss", "train/top1")
AUTO = "auto"  # a mode that follows from the monitored metric


def optimized_metric(config: Config) -> OptimizedMetric:
    """Return the metric that `optimized_metric` names.

    Raises:
        ConfigError: unless it is a metric of the validation split, and known to be maximized or minimized.
    """
    name, choices = config["optimized_metric"], _val_metrics(config)
    if name not in choices:
        option = str(name).removeprefix(VAL)
        hint = f"; metrics={option} adds val/{option}" if (CONFIG_DIR / f"metrics/{option}.yaml").is_file() else ""
        raise ConfigError(
            f"optimized_metric must be a metric of the validation split: {', '.join(choices)}; got {name!r}{hint}"
        )
    return OptimizedMetric(name, _mode(config, name, "optimized_metric"))


def with_mode(node: Config, config: Config, where: str) -> Config:
    """Return a node of a callback or scheduler, with `mode: auto` replaced by the mode of the metric that it monitors.

    Raises:
        ConfigError: if the metric is not logged, or not known to be maximized or minimized.
    """
    if node.get("mode") != AUTO:
        return node
    check_monitor(node.get("monitor"), where, config)
    return {**node, "mode": _mode(config, node["monitor"], f"{where}.monitor")}


def check_monitor(monitor: str | None, where: str, config: Config) -> None:
    """Raise ConfigError unless a metric is logged in each epoch."""
    choices = [*TRAIN_METRICS, *_val_metrics(config)]
    if monitor not in choices:
        raise ConfigError(f"{where}.monitor must be a logged metric: {', '.join(choices)}; got {monitor!r}")


def require_validations(monitor: str, where: str, config: Config) -> None:
    """Raise ConfigError for a metric of the validation split if the run never validates."""
    if monitor.startswith(VAL) and config["trainer"]["limit_val_batches"] == 0:
        raise ConfigError(
            f"{where}.monitor={monitor} needs validations, which trainer.limit_val_batches=0 turns off; monitor "
            f"{' or '.join(TRAIN_METRICS)}"
        )


def _val_metrics(config: Config) -> Sequence[str]:
    return [f"{VAL}{name}" for name in (*MODES, *entries(config["metrics"]))]


def _mode(config: Config, name: str, where: str) -> str:
    """Return `max` or `min`; an extra metric follows `higher_is_better` of its class, as in torchmetrics."""
    key = name.rpartition("/")[2]
    if key in MODES:
        return MODES[key]
    target = parts(config["metrics"][key], f"metrics.{key}")[0]
    higher = getattr(target, "higher_is_better", None)
    if not isinstance(higher, bool):
        raise ConfigError(
            f"{where}={name} needs a metric whose class has higher_is_better = True or False, as those in "
            f"torchmetrics.classification do; {target.__qualname__} has {higher}"
        )
    return "max" if higher else "min"
