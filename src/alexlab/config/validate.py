"""Checks of the objects that a config describes, on the meta device."""

import importlib.util
import math
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.loggers import WandbLogger
from torch import nn

from alexlab.config import build, build_data
from alexlab.config.allowlist import nodes
from alexlab.config.culprits import sentence
from alexlab.config.data import data_config
from alexlab.config.instantiate import Config, bind, entries, parts, value_of
from alexlab.config.monitors import check_monitor, require_validations
from alexlab.config.resolve import TWO_TOWERS, data_world_size
from alexlab.config.trainer import build_strategy, split_trainer_keys
from alexlab.data.config import DataConfig
from alexlab.data.limits import check_batch_size, check_limits
from alexlab.data.splits import Splits
from alexlab.distributed.ddp import DDPOptions
from alexlab.distributed.devices import requested_gpus
from alexlab.errors import ConfigError, install_hint
from alexlab.models.two_tower import check_towers
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.callbacks.early_stopping import EarlyStopping
from alexlab.training.callbacks.finetune import Finetune
from alexlab.training.callbacks.lr_finder import LearningRateFinder
from alexlab.training.loggers import check_wandb
from alexlab.training.module import Classifier

# Below these values Lightning misbehaves silently or fails in the middle of a run.
MIN_VALUES = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
}
VAL_PRECISIONS = ("auto", "32")
# Precisions of lightning.Trainer whose weights do not have 32 bits.
OTHER_WEIGHTS = ("16-true", "bf16-true", "64", 64, "64-true")
SCORES = ("loss", "top1", "top5", "count", "skipped", "epoch", "step")
EXTRAS = {"wandb": "wandb", "mlflow": "mlflow"}


def check_objects(config: Config, splits: Splits, *, num_ranks: int, remote: bool = False) -> None:
    """Build everything on the meta device, without memory or processes, so that errors are reported before any work.

    Raises:
        ConfigError: for the first value that cannot be used.
    """
    for key, value in nodes(config, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number; got {value}")
    for number, tag in enumerate(config["tags"] or ()):
        if not isinstance(tag, str):
            raise ConfigError(f"tags must be strings, such as tags=[baseline,paper]; tag {number + 1} is {tag!r}")
    if not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"seed must be an integer from 0 to {2**32 - 1}; got {config['seed']}")
    _check_trainer(config, num_ranks, remote=remote)
    settings = data_config(config)
    size = data_world_size(config, num_ranks)
    check_batch_size(settings, splits, num_ranks=size, accumulation_steps=config["trainer"]["accumulate_grad_batches"])
    check_limits(config["trainer"], settings, splits)
    module = build.classifier(config, splits, device="meta")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the ranks are forked from this process, which must not start OpenMP's threads
    try:
        _check_loss(module)
        _check_metrics(config, len(splits.classes))
    finally:
        torch.set_num_threads(num_threads)
    _check_image_size(config, module.net, settings)
    if config["trainer"]["strategy"] == TWO_TOWERS:
        _check_towers(config, module.net, num_ranks)
    build.pretrained(config, module.net, splits)
    try:
        optimizer = module.optimizer(module.parameter_groups(module.net))
    except ConfigError:
        raise
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {error}") from error
    schedule = module.schedule(optimizer, num_epochs=1, steps_per_epoch=100)
    build_data.datamodule(config, splits)
    build_data.extra_views(config)
    build_data.pack_config(config)
    _check_loggers(config)
    callbacks = build.callbacks(config)
    for name, callback in zip(entries(config["callbacks"]), callbacks, strict=True):
        _check_callback(callback, f"callbacks.{name}", config)
        if isinstance(callback, Finetune):
            callback.check(module.net)
    for entry in schedule:
        if "monitor" in entry:
            check_monitor(entry["monitor"], "scheduler", config)
            if not any(isinstance(callback, LearningRateFinder) for callback in callbacks):  # it sets the rates itself
                require_validations(entry["monitor"], "scheduler", config)


def _check_callback(callback: Callback, where: str, config: Config) -> None:
    if isinstance(callback, StochasticWeightAveraging):
        raise ConfigError(
            f"{where} must not be StochasticWeightAveraging, whose average is neither validated nor saved; use callbacks=ema"
        )
    if isinstance(callback, LightningEarlyStopping) and not isinstance(callback, EarlyStopping):
        raise ConfigError(
            f"{where} must be callbacks=early_stopping: Lightning's own EarlyStopping loses its decision when a run is resumed"
        )
    if isinstance(callback, CheckpointCallback | EarlyStopping):
        check_monitor(callback.monitor, where, config)
    if isinstance(callback, EarlyStopping):
        require_validations(callback.monitor, where, config)


def _check_loggers(config: Config) -> None:
    """Check the loggers without building them, since some open a file or a connection at once."""
    for name, node in entries(config["logger"]).items():
        if name in EXTRAS and importlib.util.find_spec(EXTRAS[name]) is None:
            raise ConfigError(f"logger={name} needs the package {EXTRAS[name]}: {install_hint(name)}")
        target, keywords = parts(node, f"logger.{name}")
        bind(target, f"logger.{name}", save_dir="", **keywords)
        if isinstance(target, type) and issubclass(target, WandbLogger):
            check_wandb(keywords, f"logger.{name}")


def _check_towers(config: Config, built: nn.Module, num_ranks: int) -> None:
    try:
        check_towers(built)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if num_ranks != 2:
        raise ConfigError(f"trainer=two_towers needs trainer.devices=2, on one node; got {num_ranks} processes")
    averaged = [name for name, node in entries(config["callbacks"]).items() if "WeightAverag" in node["_target_"]]
    asked = {
        "trainer.gradient_clip_val": config["trainer"]["gradient_clip_val"] is not None,
        "trainer.sync_batchnorm": config["trainer"]["sync_batchnorm"],
        "compile.enabled": config["compile"]["enabled"],
        **{f"callbacks.{name}": True for name in averaged},
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise ConfigError(f"{name} must not be set with trainer=two_towers: it needs the whole net in one process")


def _check_trainer(config: Config, num_ranks: int, *, remote: bool) -> None:
    node = config["trainer"]
    if max(node["max_epochs"] or 0, node["max_steps"]) < 1:
        raise ConfigError(
            "trainer.max_epochs or trainer.max_steps must be at least 1, since the schedule needs the length of the run; "
            f"got {node['max_epochs']} and {node['max_steps']}"
        )
    if node["limit_train_batches"] in (0, None):
        raise ConfigError(f"trainer.limit_train_batches must be positive; got {node['limit_train_batches']}")
    if node["max_steps"] == 0:
        raise ConfigError("trainer.max_steps must be at least 1, or -1 for trainer.max_epochs alone; got 0")
    for name, minimum in MIN_VALUES.items():
        if node[name] is not None and node[name] < minimum:
            raise ConfigError(f"trainer.{name} must be at least {minimum}; got {node[name]}")
    if str(node["val_precision"]) not in VAL_PRECISIONS:
        raise ConfigError(f"trainer.val_precision must be {' or '.join(VAL_PRECISIONS)}; got {node['val_precision']!r}")
    if str(node["val_precision"]) == "32" and node["precision"] in OTHER_WEIGHTS:
        raise ConfigError(
            f"trainer.val_precision=32 needs float32 weights, which trainer.precision={node['precision']} does not keep; "
            "use trainer.val_precision=auto"
        )
    on_gpu = remote or requested_gpus(accelerator=node["accelerator"], devices=node["devices"])
    if node["sync_batchnorm"] is True and num_ranks > 1 and not on_gpu:
        raise ConfigError("trainer.sync_batchnorm=true needs GPUs: PyTorch synchronizes batch norms only there")
    for target, keywords in zip((DDPOptions, lightning.Trainer), split_trainer_keys(node), strict=True):
        bind(target, "trainer", **keywords)
    build_strategy(value_of(node["strategy"], "trainer.strategy"), config, num_ranks=num_ranks)


def _check_loss(module: Classifier) -> None:
    """Check that a loss returns one value per image: the mean of a batch would depend on the number of devices."""
    num_classes = len(module.record["classes"])
    logits, labels = torch.zeros(2, num_classes), torch.tensor([0, num_classes - 1])
    probs = nn.functional.one_hot(labels, num_classes).float()
    for target in (labels, probs) if module.mix is not None else (labels,):
        kind = "labels (N,)" if target is labels else "probabilities (N, K), which augmentation.batch makes,"
        try:
            losses = module.loss(logits, target)
        except Exception as error:
            raise ConfigError(f"loss must accept logits (N, K) and {kind}: {sentence(error)}") from error
        if not isinstance(losses, torch.Tensor) or losses.shape != (2,):
            raise ConfigError(
                f"loss must return one value per image, shape (N,) such as (2,); got {_described(losses)}"
            )


def _check_metrics(config: Config, num_classes: int) -> None:
    """Check that each metric accepts logits and labels and computes one number."""
    for name, metric in build.extra_metrics(config, num_classes).items():
        if name in SCORES:
            raise ConfigError(f"metrics.{name} must have another name: {', '.join(SCORES)} are always computed")
        try:
            metric.update(torch.zeros(2, num_classes), torch.tensor([0, num_classes - 1]))
            value = metric.compute()
        except Exception as error:
            raise ConfigError(f"metrics.{name} must accept logits (N, K) and labels (N,): {sentence(error)}") from error
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise ConfigError(f"metrics.{name} must compute one number; got {_described(value)}")


def _described(value: Any) -> str:
    """Return the shape of a tensor, and the type of anything else."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def _check_image_size(config: Config, built: nn.Module, settings: DataConfig) -> None:
    channels = config["model"].get("in_channels", settings.channels)
    if channels != settings.channels:
        raise ConfigError(
            f"data.channels must equal model.in_channels={channels}; got {settings.channels}: set model.in_channels, which "
            "data.channels follows"
        )
    check_size = getattr(built, "check_image_size", None)
    try:
        if check_size is not None:
            check_size(settings.image_size)
        else:
            built.eval()(torch.empty(1, settings.channels, settings.image_size, settings.image_size, device="meta"))
    except (ValueError, RuntimeError, AssertionError) as error:
        if check_size is not None:
            raise ConfigError(str(error)) from error
        raise ConfigError(f"data.image_size={settings.image_size} does not fit the net: {error}") from error
