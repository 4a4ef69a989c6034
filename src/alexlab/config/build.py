"""Objects from config nodes. Each node holds the keyword arguments of one call."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric
from torchvision.transforms import v2

from alexlab.config.data import data_config
from alexlab.config.instantiate import Config, bind, entries, make, parts
from alexlab.config.monitors import optimized_metric, with_mode
from alexlab.data.config import DataConfig
from alexlab.data.splits import Splits
from alexlab.errors import ConfigError
from alexlab.models.compile import compile_net
from alexlab.models.init import init_weights
from alexlab.models.timm import TIMM
from alexlab.models.weights.matching import MatchedWeights, match_weights
from alexlab.models.weights.pretrained import read_source
from alexlab.training.loggers import logger_errors
from alexlab.training.module import Classifier
from alexlab.training.param_groups import parameter_groups
from alexlab.training.preprocessing import Inference
from alexlab.training.schedules import from_torch


def net(config: Config, num_classes: int, *, num_outputs: int | None = None) -> nn.Module:
    """Return the net of the `model` node, initialized by `model.init`, without `model.weights`.

    `model.num_classes=null` means the classes found in the data. `model.dropout=0` turns off the dropout of any net, also of one
    without such an argument.

    Args:
        config: composed config.
        num_classes: number of classes in the data.
        num_outputs: number of outputs of the net if it differs from `num_classes`.
    """
    node = {key: value for key, value in config["model"].items() if key != "weights"}
    target = parts(node, "model")[0]
    # Nets of torchvision, timm and the user's code are initialized here; those of alexlab take the scheme as an argument.
    parameters = inspect.signature(target).parameters
    scheme = None if "init" in parameters else node.pop("init", None)
    no_dropout = "dropout" not in parameters and node.get("dropout") == 0
    if no_dropout:
        del node["dropout"]
    wanted = node.pop("num_classes", None)
    if wanted not in (None, num_classes):
        raise ConfigError(f"model.num_classes must be null or the {num_classes} classes of the data; got {wanted}")
    built: nn.Module = make(node, "model", num_outputs or num_classes)
    for layer in built.modules() if no_dropout else ():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    if scheme is not None:
        try:
            init_weights(built, scheme)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return built


def pretrained(config: Config, net: nn.Module, splits: Splits) -> MatchedWeights | None:
    """Return the weights of `model.weights` or `model.pretrained` matched to a net, which may be on the meta device, or None.

    Raises:
        ConfigError: if they cannot be read or do not match the net.
    """
    name = config["model"].get("weights")
    if config["model"].get("pretrained") is True:  # an argument of timm's nets only
        if name is not None:
            raise ConfigError(f"model.pretrained must be false with model.weights; got model.weights={name}")
        name = TIMM
    if name is None:
        return None
    return match_weights(net, read_source(name, net), head=_head(config, len(splits.classes)), classes=splits.classes)


def _head(config: Config, num_classes: int) -> frozenset[str]:
    """Return the names of the parameters whose shape depends on the number of classes."""
    node = {**config, "model": {**config["model"], "num_classes": None}}
    with torch.device("meta"):
        states = [net(node, num_classes + more).state_dict() for more in (1, 2)]
    return frozenset(name for name, value in states[0].items() if value.shape != states[1][name].shape)


def classifier(
    config: Config,
    splits: Splits,
    *,
    record: Config | None = None,
    mean_image: Tensor | None = None,
    device: str = "cpu",
) -> Classifier:
    """Return the LightningModule for the classes of a dataset; on the meta device the net takes no memory.

    Without the image of `data.mean_image`, as in checks before it is measured, it subtracts zeros.
    """
    settings = data_config(config)
    num_classes = len(splits.classes)
    loss = make(config["loss"], "loss", splits.train.class_counts())
    optimizer, options = parts(config["optimizer"], "optimizer")
    bind(parameter_groups, "param_groups", None, **config["param_groups"])
    head = _head(config, num_classes) if config["param_groups"]["head_lr"] is not None else ()
    schedule, shape = _schedule(with_mode(config["scheduler"], config, "scheduler"))
    module, own = parts(config["module"], "module")
    metrics = extra_metrics(config, num_classes)
    bind(compile_net, "compile", None, **config["compile"])
    bind(optimizer, "optimizer", [], **options)
    if "lr" not in options:
        raise ConfigError("optimizer.lr must be given: optimizer.lr=VALUE")
    with torch.device(device):
        built = net(config, num_classes, num_outputs=num_outputs(loss, num_classes))
    if device != "meta":
        compile_net(built, **config["compile"])
    arguments: Config = {
        "classes": splits.classes,
        "loss": loss,
        "optimizer": partial(optimizer, **options),
        "parameter_groups": partial(parameter_groups, head=head, **config["param_groups"]),
        "schedule": partial(schedule, **shape),
        "mean": settings.per_channel(settings.mean),
        "std": settings.per_channel(settings.std),
        "mean_image": mean_image if mean_image is not None else _no_mean_image(settings),
        "mix": _mix(config["augmentation"]["batch"], num_classes),
        "skip_unreadable": settings.on_error == "skip",
        "val_precision": str(config["trainer"]["val_precision"]),
        "seed": config["seed"],
        "extra_metrics": metrics,
        "optimized_metric": optimized_metric(config),
        "record": record,
    }
    built = built.to(memory_format=torch.channels_last)
    taken = sorted(arguments.keys() & own)
    if taken:
        raise ConfigError(f"module.{taken[0]} must not be set: the run sets it")
    bind(module, "module", built, **arguments, **own)
    made: Classifier = module(built, **arguments, **own)
    return made


def _schedule(node: Config) -> tuple[Callable[..., Any], Config]:
    """Return the function of a `scheduler` node, or for a class the function that builds it, and its keyword arguments."""
    schedule, shape = parts(node, "scheduler")
    if not (isinstance(schedule, type) and issubclass(schedule, LRScheduler)):
        bind(schedule, "scheduler", None, num_epochs=1, steps_per_epoch=1, **shape)
        return schedule, shape
    bind(schedule, "scheduler", None, **{name: shape[name] for name in shape if name not in ("interval", "monitor")})
    return partial(from_torch, schedule), shape


def num_outputs(loss: nn.Module, num_classes: int) -> int:
    """Return the number of outputs of the net that a loss needs: `loss.num_outputs`, by default the number of classes."""
    return int(getattr(loss, "num_outputs", num_classes))


def extra_metrics(config: Config, num_classes: int) -> dict[str, Metric]:
    """Return the metrics of the `metrics` node by name."""
    return {
        name: make(node, f"metrics.{name}", num_classes=num_classes)
        for name, node in entries(config["metrics"]).items()
    }


def _no_mean_image(settings: DataConfig) -> Tensor | None:
    size = settings.image_size
    return torch.zeros(settings.channels, size, size) if settings.mean_image else None


def inference(config: Config, num_classes: int, *, mean_image: Tensor | None = None) -> Inference:
    """Return the net of a config with its pre- and postprocessing, on the meta device, to be filled with loaded weights.

    Raises:
        ValueError: if the config asks for a mean image of another shape than the given one.
    """
    settings = data_config(config)
    outputs = num_outputs(make(config["loss"], "loss", [1] * num_classes), num_classes)
    with torch.device("meta"):
        built = net(config, num_classes, num_outputs=outputs)
    expected = _no_mean_image(settings)
    if expected is None:
        return Inference(built, mean=settings.per_channel(settings.mean), std=settings.per_channel(settings.std))
    if not isinstance(mean_image, Tensor) or mean_image.shape != expected.shape:
        given = tuple(mean_image.shape) if isinstance(mean_image, Tensor) else type(mean_image).__name__
        raise ValueError(f"its mean image must be a tensor of shape {tuple(expected.shape)}; got {given}")
    return Inference(built, mean=mean_image, std=settings.per_channel(settings.std))


def _mix(nodes: Config, num_classes: int) -> Callable[..., Any] | None:
    # torch.compile disables these checks for the whole process, and MixUp(alpha=-1) would pass.
    Distribution.set_default_validate_args(True)
    mixers = [
        make(node, f"augmentation.batch.{name}", num_classes=num_classes) for name, node in entries(nodes).items()
    ]
    if not mixers:
        return None
    return mixers[0] if len(mixers) == 1 else v2.RandomChoice(mixers)


def callbacks(config: Config) -> list[Callback]:
    """Return the callbacks in config order."""
    nodes = {f"callbacks.{name}": node for name, node in entries(config["callbacks"]).items()}
    return [make(with_mode(node, config, where), where) for where, node in nodes.items()]


def loggers(config: Config, run_dir: Path) -> list[Logger]:
    """Return the loggers, which write to the run folder."""
    made = []
    for name, node in entries(config["logger"]).items():
        with logger_errors(f"logger.{name}"):
            made.append(make(node, f"logger.{name}", save_dir=str(run_dir)))
    return made
