"""The Lightning Trainer of a run, with its strategy and plugins."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy

from alexlab import compat
from alexlab.config import build
from alexlab.config.instantiate import Config, value_of
from alexlab.config.resolve import TWO_TOWERS, resolve_auto
from alexlab.distributed import devices
from alexlab.distributed.ddp import KEYS as DDP_KEYS
from alexlab.distributed.ddp import DDPOptions, HookedDDP
from alexlab.distributed.devices import requested_gpus
from alexlab.distributed.error_files import ReportErrors
from alexlab.distributed.ranks import is_distributed
from alexlab.errors import ConfigError
from alexlab.training.callbacks.preemption import PreemptionCallback
from alexlab.training.callbacks.run_record import RunRecordUpdates
from alexlab.training.checkpoint_io import AtomicCheckpointIO
from alexlab.training.nonfinite import NonFiniteReport
from alexlab.training.two_towers import TwoTowerStrategy

STRATEGIES = ("auto", "ddp")


def build_trainer(config: Config, run_dir: Path, *, num_ranks: int) -> lightning.Trainer:
    """Return the Trainer. Samplers, run folder and process group are set here and are not keys of the `trainer` node."""
    given = split_trainer_keys(resolve_auto(config["trainer"]))[1]
    node = {name: value_of(value, f"trainer.{name}") for name, value in given.items()}
    node["strategy"] = build_strategy(node["strategy"], config, num_ranks=num_ranks)
    if not requested_gpus(accelerator=node["accelerator"], devices=node["devices"]):
        node["devices"] = devices.count_devices(node["devices"], available=1)  # Lightning rejects -1 and lists on a CPU
    callbacks, loggers = build.callbacks(config), build.loggers(config, run_dir)
    # Otherwise Lightning adds its own checkpoint and progress bar callbacks where the config has none.
    for name, kind in (("enable_checkpointing", Checkpoint), ("enable_progress_bar", ProgressBar)):
        if node[name] is None:
            node[name] = any(isinstance(callback, kind) for callback in callbacks)
        elif not node[name]:
            callbacks = [callback for callback in callbacks if not isinstance(callback, kind)]
    if not loggers:
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    plugins = build_plugins(node["plugins"])
    if config["trainer"]["precision"] == "auto" and any(isinstance(plugin, Precision) for plugin in plugins):
        node["precision"] = None
    keywords = {
        **node,
        "plugins": plugins,
        "callbacks": [
            *(NonFiniteReport(), ReportErrors(), PreemptionCallback(config["elastic"]["timeout_s"])),
            *callbacks,
            RunRecordUpdates(),
        ],
        "logger": loggers,
        "default_root_dir": str(run_dir),
        "use_distributed_sampler": False,
    }
    trainer = lightning.Trainer(**keywords)
    compat.finish_steps(trainer)
    return trainer


def split_trainer_keys(node: Config) -> tuple[Config, Config]:
    """Return the keys of a `trainer` node that DDPOptions takes, and those that lightning.Trainer takes.

    The remaining one, `val_precision`, is of the LightningModule.
    """
    return (
        {name: value for name, value in node.items() if name in DDP_KEYS},
        {name: value for name, value in node.items() if name not in {*DDP_KEYS, "val_precision"}},
    )


def build_strategy(given: Any, config: Config, *, num_ranks: int) -> Any:
    """Return the strategy for `trainer.strategy`: a name or a DDPStrategy."""
    timeout = timedelta(seconds=config["elastic"]["timeout_s"])
    options = DDPOptions(**split_trainer_keys(config["trainer"])[0])
    if given not in (*STRATEGIES, TWO_TOWERS) and not isinstance(given, DDPStrategy):
        raise ConfigError(
            f"trainer.strategy must be one of {', '.join(STRATEGIES)}, {TWO_TOWERS} or a DDPStrategy; got {given!r}; use "
            "trainer.strategy=auto, which is DDP on several devices"
        )
    if given not in STRATEGIES and options.changed:
        averages = f"trainer={TWO_TOWERS} does not average gradients"
        reason = averages if given == TWO_TOWERS else "a DDPStrategy takes its arguments from its own node"
        raise ConfigError(f"trainer.{options.changed[0]} needs trainer.strategy=auto or ddp, since {reason}")
    if given == TWO_TOWERS:
        return TwoTowerStrategy(timeout)
    if num_ranks == 1 or given not in STRATEGIES:
        return given
    node = config["trainer"]
    options.check(accumulate=node["accumulate_grad_batches"], precision=node["precision"])
    return HookedDDP(options, timeout)


def build_plugins(given: Any) -> list[Any]:
    """Add our default plugins to those of the config.

    The ranks were started by our launcher or by torchrun. By default Lightning would choose its SLURM plugins wherever `srun`
    exists and requeue the job itself.
    """
    plugins = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    environment = TorchElasticEnvironment if is_distributed() else LightningEnvironment
    defaults = {CheckpointIO: AtomicCheckpointIO, ClusterEnvironment: environment}
    return [
        *plugins,
        *(make() for kind, make in defaults.items() if not any(isinstance(plugin, kind) for plugin in plugins)),
    ]
