"""From the config to objects. This is the only module that reads config keys, and each node is the arguments of one call."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributions import Distribution
from torchvision.transforms import v2

from alexlab.config.instantiate import Config, bind, make, parts, value_of
from alexlab.data.cache.build_pack import open_pack
from alexlab.data.cache.on_device import check_crops
from alexlab.data.cache.pack import PackConfig, PackedImages, pack_mismatch, required_size
from alexlab.data.class_names import display_names, read_class_names
from alexlab.data.config import DataConfig
from alexlab.data.datamodule import ImageDataModule
from alexlab.data.limits import check_batch_size, check_limits
from alexlab.data.splits import Split, Splits
from alexlab.data.statistics import ChannelStatistics, check_std, measure_statistics
from alexlab.data.transforms import PCAColorNoise, Views
from alexlab.data.unreadable import UnreadableLog
from alexlab.distributed import devices
from alexlab.distributed.ddp import KEYS as DDP_KEYS
from alexlab.distributed.ddp import DDPOptions, HookedDDP
from alexlab.distributed.devices import requested_gpus
from alexlab.distributed.error_files import ReportErrors
from alexlab.distributed.hardware import cpu_has_bfloat16
from alexlab.distributed.ranks import broadcast, is_distributed
from alexlab.errors import ConfigError
from alexlab.models.two_tower import check_towers
from alexlab.models.weights.matching import MatchedWeights, match_weights
from alexlab.models.weights.pretrained import read_source
from alexlab.runs.layout import SKIPPED
from alexlab.training.callbacks.checkpoint import CheckpointCallback
from alexlab.training.callbacks.finetune import Finetune
from alexlab.training.callbacks.preemption import PreemptionCallback
from alexlab.training.callbacks.run_record import RunRecordUpdates
from alexlab.training.checkpoint_io import AtomicCheckpointIO
from alexlab.training.compiling import compile_net
from alexlab.training.loggers import check_wandb, logger_errors
from alexlab.training.module import Classifier
from alexlab.training.nonfinite import NonFiniteReport
from alexlab.training.param_groups import parameter_groups
from alexlab.training.preprocessing import Inference
from alexlab.training.two_towers import TwoTowerStrategy

TOWERS = "two_towers"  # as trainer.strategy
# Below these values Lightning does something unintended, or fails in the middle of a run.
LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
}
STRATEGIES = ("auto", "ddp")
SCORES = ("train/loss", "train/top1", "val/loss", "val/top1", "val/top5")
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
PRETENDED = ChannelStatistics(0, (0.5,) * 3, (0.25,) * 3, (0.1, 0.01, 0.001), IDENTITY)
EXTRAS = {"wandb": "wandb", "mlflow": "mlflow"}


def net(config: Config, num_classes: int, *, num_outputs: int | None = None) -> nn.Module:
    """The net of the `model` node; `model.num_classes=null` means the classes found in the data.

    Args:
        config: the composed config.
        num_classes: of the data.
        num_outputs: of the net, where they are not as many.
    """
    node = {key: value for key, value in config["model"].items() if key != "weights"}
    wanted = node.pop("num_classes", None)
    if wanted not in (None, num_classes):
        raise ConfigError(f"model.num_classes must be null or the {num_classes} classes of the data; got {wanted}")
    built: nn.Module = make(node, "model", num_outputs or num_classes)
    return built


def pretrained(config: Config, net: nn.Module, splits: Splits) -> MatchedWeights | None:
    """What `model.weights` has for this net, which may be on the device `meta`; None where it is null."""
    name = config["model"].get("weights")
    if name is None:
        return None
    return match_weights(net, read_source(name, net), head=_head(config, len(splits.classes)), classes=splits.classes)


def _head(config: Config, num_classes: int) -> frozenset[str]:
    """Names of the parameters that another number of classes would change."""
    node = {**config, "model": {**config["model"], "num_classes": None}}
    with torch.device("meta"):
        states = [net(node, num_classes + more).state_dict() for more in (1, 2)]
    return frozenset(name for name, value in states[0].items() if value.shape != states[1][name].shape)


def measured(config: Config, splits: Splits, *, pretended: bool = False) -> tuple[Config, ChannelStatistics | None]:
    """The config with the numbers that are to be measured on the training split filled in, and what was measured.

    These are `data.mean`, `data.std` and the components of PCAColorNoise, where they are null.

    Args:
        config: the composed config.
        splits: the data.
        pretended: fill in numbers of the right shape without measuring, for a check.
    """
    node, views = dict(config["data"]), config["augmentation"]
    if set(views) != {"train", "eval", "batch"}:
        raise ConfigError(f"augmentation must have train, eval and batch; got {', '.join(views)}")
    noises = {
        name: transform
        for name, transform in entries(views["train"]).items()
        if _is_noise(transform, f"augmentation.train.{name}") and transform.get("eigenvalues") is None
    }
    if noises and node["channels"] != 3:
        raise ConfigError(f"augmentation.train.{next(iter(noises))} needs colours; got model.in_channels=1")
    if node["mean"] is not None and node["std"] is not None and not noises:
        return config, None
    found = (
        PRETENDED
        if pretended
        else measure_statistics(
            splits.train, decoding=data(config).decoding, skip_unreadable=data(config).on_error == "skip"
        )
    )
    if node["std"] is None:
        check_std(found)
    node["mean"] = found.mean if node["mean"] is None else node["mean"]
    node["std"] = found.std if node["std"] is None else node["std"]
    axes = {"eigenvalues": found.eigenvalues, "eigenvectors": found.eigenvectors}
    train = (views["train"] or {}) | {name: {**transform, **axes} for name, transform in noises.items()}
    return {**config, "data": node, "augmentation": {**views, "train": train}}, found


def agreed_measures(config: Config, splits: Splits) -> tuple[Config, ChannelStatistics | None]:
    """What `measured` gives on the first node, for all of them: machines may round differently."""
    here: list[ChannelStatistics | None] = [None]

    def measure_here() -> Config:
        found, here[0] = measured(config, splits)
        return {name: found[name] for name in ("data", "augmentation")}

    found = broadcast("measures", measure_here)
    own = {name: config["data"][name] for name in config["data"] if name not in ("mean", "std")}
    return {**config, "data": {**found["data"], **own}, "augmentation": found["augmentation"]}, here[0]


def image_shares(config: Config, num_ranks: int) -> int:
    """Into how many shares the ranks divide the images: two towers see all of them."""
    return 1 if config["trainer"]["strategy"] == TOWERS else num_ranks


def accumulation(config: Config, num_ranks: int) -> int | None:
    """Batches that a step adds up on so many ranks, so that the global batch stays and no rank's share of it grows.

    With all ranks of the config that is `trainer.accumulate_grad_batches`, with fewer it is more; None where the batch
    cannot be shared out so.
    """
    node, batch = config["trainer"], config["data"]["batch_size"]
    all_ranks = node["num_nodes"] * devices.num_ranks(accelerator=node["accelerator"], devices=node["devices"])
    whole, num_ranks = image_shares(config, all_ranks), image_shares(config, num_ranks)
    images = batch // (whole * node["accumulate_grad_batches"])  # of a rank's batch
    counts = range(1, batch // num_ranks + 1)
    return next((n for n in counts if batch % (num_ranks * n) == 0 and batch // (num_ranks * n) <= images), None)


def named(config: Config, splits: Splits) -> Config:
    """The config with the content of the file `class_names`, so that a checkpoint is enough."""
    names = config["class_names"]
    if isinstance(names, str):
        names = read_class_names(names)
        display_names(splits.classes, names)
    elif names is not None and not isinstance(names, dict):
        raise ConfigError(f"class_names must be null or a JSON file; got {names!r}")
    return {**config, "class_names": names}


def packing(config: Config) -> PackConfig | None:
    """How the images are to be packed; None where they are not.

    Raises:
        ConfigError: when a view of the recipe cannot come from such a pack.
    """
    settings = data(config)
    bind(PackConfig, "data.pack", **settings.pack)
    if settings.cache is None:
        return None
    pack = PackConfig(**settings.pack)
    views = config["augmentation"]
    first = {f"augmentation.{stage}": _first(views[stage], f"augmentation.{stage}") for stage in ("eval", "train")}
    if pack.size is None:
        pack = replace(pack, size=required_size(first["augmentation.eval"]))
    for name, view in {**first, "test.views": extra_views(config)}.items():
        reason = None if view is None else pack_mismatch(view, pack)
        if reason is not None:
            raise ConfigError(f"{name} cannot come from the pack of data.cache={settings.cache}: {reason}")
    if settings.cache == "device":
        if not pack.square:
            raise ConfigError("data.cache=device needs squares: data.pack.crop=center or data.pack.resize=squash")
        recipes = {
            f"augmentation.{stage}": _transforms(views[stage], f"augmentation.{stage}") for stage in ("eval", "train")
        }
        check_crops(recipes, pack.size or 0)
    return pack


def _first(nodes: Config, where: str) -> Any:
    for name, node in entries(nodes).items():
        return make(node, f"{where}.{name}")
    return None


def packed(config: Config, splits: Splits) -> Splits:
    """The splits with their images packed, where the config wants it; made now where there is no pack yet."""
    pack, settings = packing(config), data(config)
    if pack is None:
        return splits
    opened: dict[str, PackedImages] = {}
    parts: dict[str, Split] = {}
    for name, split in splits.items():
        listing = split.listing
        assert listing is not None
        if listing.folder not in opened:
            opened[listing.folder] = open_pack(
                listing,
                pack,
                decoding=settings.decoding,
                cache_dir=Path(settings.cache_dir),
                hashes=splits.hashes_of(listing),
                skip=settings.on_error == "skip",
            )
        parts[name] = replace(split, images=opened[listing.folder])
    return replace(splits, train=parts["train"], val=parts["val"], test=parts.get("test"))


def _is_noise(node: Config | None, where: str) -> bool:
    return node is not None and parts(node, where)[0] is PCAColorNoise


def data(config: Config) -> DataConfig:
    """The settings of the `data` node."""
    bind(DataConfig, "data", **config["data"])
    return DataConfig(**config["data"])


def classifier(config: Config, splits: Splits, *, record: Config | None = None, device: str = "cpu") -> Classifier:
    """The LightningModule for the classes of a data set; on the device `meta` the net takes no memory."""
    settings = data(config)
    num_classes = len(splits.classes)
    loss = make(config["loss"], "loss", splits.train.class_counts())
    optimizer, options = parts(config["optimizer"], "optimizer")
    bind(parameter_groups, "param_groups", None, **config["param_groups"])
    head = _head(config, num_classes) if config["param_groups"]["head_lr"] is not None else ()
    schedule, shape = parts(config["scheduler"], "scheduler")
    bind(compile_net, "compile", None, **config["compile"])
    bind(optimizer, "optimizer", [], **options)
    if "lr" not in options:
        raise ConfigError("optimizer.lr must be given: optimizer.lr=VALUE")
    bind(schedule, "scheduler", None, num_epochs=1, steps_per_epoch=1, **shape)
    with torch.device(device):
        built = net(config, num_classes, num_outputs=loss.num_outputs)
    if device != "meta":
        compile_net(built, **config["compile"])
    return Classifier(
        built.to(memory_format=torch.channels_last),
        classes=splits.classes,
        loss=loss,
        optimizer=partial(optimizer, **options),
        parameter_groups=partial(parameter_groups, head=head, **config["param_groups"]),
        schedule=partial(schedule, **shape),
        mean=settings.per_channel(settings.mean),
        std=settings.per_channel(settings.std),
        mix=_mix(config["augmentation"]["batch"], num_classes),
        skip_unreadable=settings.on_error == "skip",
        seed=config["seed"],
        record=record,
    )


def inference(config: Config, num_classes: int) -> Inference:
    """The net of a config with what goes before and after it, on the device `meta`, for weights that are there already."""
    settings = data(config)
    num_outputs = make(config["loss"], "loss", [1] * num_classes).num_outputs
    with torch.device("meta"):
        built = net(config, num_classes, num_outputs=num_outputs)
    return Inference(built, mean=settings.per_channel(settings.mean), std=settings.per_channel(settings.std))


def eval_view(config: Config, views: str = "center") -> Callable[..., Any]:
    """From a uint8 image (C, H, W) to what the net takes: the view that the run has evaluated, or several, (V, C, H, W)."""
    if views == "center":
        return _transforms(config["augmentation"]["eval"], "augmentation.eval")
    try:
        return Views(data(config).image_size, views)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def datamodule(config: Config, splits: Splits, run_dir: Path | None = None) -> ImageDataModule:
    """The LightningDataModule; the run folder takes the list of the images that cannot be read."""
    views = config["augmentation"]
    skipped = None if run_dir is None else UnreadableLog(run_dir / SKIPPED)
    if skipped is not None:  # loader processes are forked before the callback that has the key is asked
        skipped.continue_on_full_disk = any(
            node.get("on_error") == "warn" for node in entries(config["callbacks"]).values()
        )
    return ImageDataModule(
        data(config),
        splits,
        train_transform=_transforms(views["train"], "augmentation.train"),
        eval_transform=_transforms(views["eval"], "augmentation.eval"),
        seed=config["seed"],
        unreadable=skipped,
    )


def extra_views(config: Config) -> Views | None:
    """The views of the `test` node; None where they are the centre, which is scored anyway."""
    bind(Views, "test", 1, **config["test"])
    try:
        views = Views(data(config).image_size, **config["test"])
    except ValueError as error:
        raise ConfigError(f"test.{error}") from error
    return None if config["test"]["views"] == "center" else views


def entries(nodes: Config) -> Config:
    """The nodes of a named dict; null leaves an entry out."""
    return {name: node for name, node in (nodes or {}).items() if node is not None}


def _transforms(nodes: Config, where: str) -> Callable[..., Any]:
    if not entries(nodes):
        raise ConfigError(f"{where} must have a transform that gives images of data.image_size; it has none")
    return v2.Compose([make(node, f"{where}.{name}") for name, node in entries(nodes).items()])


def _mix(nodes: Config, num_classes: int) -> Callable[..., Any] | None:
    # torch.compile turns these checks off for the whole process, and MixUp(alpha=-1) would pass.
    Distribution.set_default_validate_args(True)
    mixers = [
        make(node, f"augmentation.batch.{name}", num_classes=num_classes) for name, node in entries(nodes).items()
    ]
    if not mixers:
        return None
    return mixers[0] if len(mixers) == 1 else v2.RandomChoice(mixers)


def callbacks(config: Config) -> list[Callback]:
    """The callbacks, in the order of the config."""
    return [make(node, f"callbacks.{name}") for name, node in entries(config["callbacks"]).items()]


def loggers(config: Config, run_dir: Path) -> list[Logger]:
    """The loggers, writing into the run folder."""
    made = []
    for name, node in entries(config["logger"]).items():
        with logger_errors(f"logger.{name}"):
            made.append(make(node, f"logger.{name}", save_dir=str(run_dir)))
    return made


def _check_loggers(config: Config) -> None:
    """Looks at the loggers without making them: some open a file or a connection at once."""
    for name, node in entries(config["logger"]).items():
        if name in EXTRAS and importlib.util.find_spec(EXTRAS[name]) is None:
            raise ConfigError(f"logger={name} needs the package {EXTRAS[name]}: pip install -e '.[{name}]'")
        target, keywords = parts(node, f"logger.{name}")
        bind(target, f"logger.{name}", save_dir="", **keywords)
        if isinstance(target, type) and issubclass(target, WandbLogger):
            check_wandb(keywords, f"logger.{name}")


def trainer(config: Config, run_dir: Path, *, num_ranks: int) -> lightning.Trainer:
    """The Trainer; what alexlab decides itself (samplers, folder, process group) is no key of the `trainer` node."""
    given = _divided(fastest(config["trainer"]))[1]
    node = {name: value_of(value, f"trainer.{name}") for name, value in given.items()}
    node["strategy"] = _strategy(node["strategy"], config, num_ranks=num_ranks)
    if not requested_gpus(accelerator=node["accelerator"], devices=node["devices"]):
        node["devices"] = devices.count_devices(
            node["devices"], available=1
        )  # Lightning takes no -1 and no list for a CPU
    called, logged = callbacks(config), loggers(config, run_dir)
    # Without these Lightning adds a checkpoint and a bar of its own where the config has none.
    for name, kind in (("enable_checkpointing", Checkpoint), ("enable_progress_bar", ProgressBar)):
        if node[name] is None:
            node[name] = any(isinstance(callback, kind) for callback in called)
        elif not node[name]:
            called = [callback for callback in called if not isinstance(callback, kind)]
    if not logged:
        called = [callback for callback in called if not isinstance(callback, LearningRateMonitor)]
    own = plugins(node["plugins"])
    if config["trainer"]["precision"] == "auto" and any(isinstance(plugin, Precision) for plugin in own):
        node["precision"] = None
    keywords = {
        **node,
        "plugins": own,
        "callbacks": [
            *(NonFiniteReport(), ReportErrors(), PreemptionCallback(config["elastic"]["timeout_s"])),
            *called,
            RunRecordUpdates(),
        ],
        "logger": logged,
        "default_root_dir": str(run_dir),
        "use_distributed_sampler": False,
    }
    return lightning.Trainer(**keywords)


def _divided(node: Config) -> tuple[Config, Config]:
    """Return the keys of a `trainer` node that DDPOptions takes, and those that lightning.Trainer takes."""
    return (
        {name: value for name, value in node.items() if name in DDP_KEYS},
        {name: value for name, value in node.items() if name not in DDP_KEYS},
    )


def _strategy(given: Any, config: Config, *, num_ranks: int) -> Any:
    """The strategy of `trainer.strategy`, which is one of alexlab's own, a DDPStrategy or the name of one."""
    timeout = timedelta(seconds=config["elastic"]["timeout_s"])
    options = DDPOptions(**_divided(config["trainer"])[0])
    if given not in (*STRATEGIES, TOWERS) and not isinstance(given, DDPStrategy):
        raise ConfigError(
            f"trainer.strategy must be one of {', '.join(STRATEGIES)}, {TOWERS} or a DDPStrategy, since the net fits on one "
            "device and DDP, with trainer.comm_hook=bf16 for a slow network, is faster than sharding it as fsdp and "
            f"deepspeed do; got {given!r}"
        )
    if given not in STRATEGIES and options.changed:
        averages = f"trainer={TOWERS} averages no gradients"
        reason = averages if given == TOWERS else "a DDPStrategy takes its arguments from its own node"
        raise ConfigError(f"trainer.{options.changed[0]} needs trainer.strategy=auto or ddp, since {reason}")
    if given == TOWERS:
        return TwoTowerStrategy(timeout)
    if num_ranks == 1 or given not in STRATEGIES:
        return given
    node = config["trainer"]
    options.check(accumulate=node["accumulate_grad_batches"], precision=node["precision"])
    return HookedDDP(options, timeout)


def plugins(given: Any) -> list[Any]:
    """Those of the config and ours. Our launcher or torchrun has started the ranks: left to itself, Lightning would take those
    of SLURM wherever there is `srun`, and queue the job again by itself."""
    own = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    outside = TorchElasticEnvironment if is_distributed() else LightningEnvironment
    defaults = {CheckpointIO: AtomicCheckpointIO, ClusterEnvironment: outside}
    return [
        *own,
        *(make() for kind, make in defaults.items() if not any(isinstance(plugin, kind) for plugin in own)),
    ]


def fastest(node: Config) -> Config:
    """The `trainer` node with what it leaves to the machine: `precision=auto` and `benchmark=null`.

    What computes in bfloat16 takes `bf16-mixed`, whose step is the faster one: on a CPU with instructions for it 1.8 x at full
    and half width, 1.3 to 1.7 x with the other nets (2 cores of an AMD EPYC, 2026-11-23). On a GPU cuDNN looks for its
    fastest algorithms, which need not be the same in every run.
    """
    on_gpu = bool(requested_gpus(accelerator=node["accelerator"], devices=node["devices"]))
    found = dict(node)
    if node["precision"] == "auto":
        able = torch.cuda.is_bf16_supported(False) if on_gpu else cpu_has_bfloat16()
        found["precision"] = "bf16-mixed" if able else "32-true"
    if node["benchmark"] is None and on_gpu:
        found["benchmark"] = not node["deterministic"]
    return found


def check(config: Config, splits: Splits, *, num_ranks: int, remote: bool = False) -> None:
    """Builds everything on the meta device, without memory or processes, so that mistakes are told before any work.

    Raises:
        ConfigError: in one sentence, for the first thing that does not fit.
    """
    _check_numbers(config, "")
    if not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"seed must be a whole number from 0 to {2**32 - 1}; got {config['seed']}")
    _check_trainer(config, num_ranks, remote=remote)
    settings = data(config)
    shares = image_shares(config, num_ranks)
    check_batch_size(
        settings, splits, num_ranks=shares, accumulation_steps=config["trainer"]["accumulate_grad_batches"]
    )
    check_limits(config["trainer"], settings, splits)
    module = classifier(config, splits, device="meta")
    _check_image_size(module.net, settings)
    if config["trainer"]["strategy"] == TOWERS:
        _check_towers(config, module.net, num_ranks)
    pretrained(config, module.net, splits)
    if "lr" not in config["optimizer"]:
        raise ConfigError("optimizer.lr must be given: +optimizer.lr=VALUE")
    try:
        optimizer = module.optimizer(module.parameter_groups(module.net))
    except ConfigError:
        raise
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {error}") from error
    schedule = module.schedule(optimizer, num_epochs=1, steps_per_epoch=100)
    datamodule(config, splits)
    extra_views(config)
    packing(config)
    _check_loggers(config)
    monitors = {
        f"callbacks.{name}": node for name, node in zip(entries(config["callbacks"]), callbacks(config), strict=True)
    }
    for where, callback in monitors.items():
        if isinstance(callback, Finetune):
            callback.check(module.net)
        if isinstance(callback, CheckpointCallback | EarlyStopping):
            _check_monitor(callback.monitor, where)
    for entry in schedule:
        if "monitor" in entry:
            _check_monitor(entry["monitor"], "scheduler")


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
            raise ConfigError(f"{name} needs the whole net in one process, so trainer=two_towers refuses it")


def _check_trainer(config: Config, num_ranks: int, *, remote: bool) -> None:
    node = config["trainer"]
    if max(node["max_epochs"] or 0, node["max_steps"]) < 1:
        raise ConfigError(
            "trainer.max_epochs or trainer.max_steps must be at least 1, the schedule needs the length of the run; "
            f"got {node['max_epochs']} and {node['max_steps']}"
        )
    if node["limit_train_batches"] in (0, None):
        raise ConfigError(f"trainer.limit_train_batches must be positive; got {node['limit_train_batches']}")
    if node["max_steps"] == 0:
        raise ConfigError("trainer.max_steps must be at least 1, or -1 for trainer.max_epochs alone; got 0")
    for name, least in LEAST.items():
        if node[name] is not None and node[name] < least:
            raise ConfigError(f"trainer.{name} must be at least {least}; got {node[name]}")
    on_gpu = remote or requested_gpus(accelerator=node["accelerator"], devices=node["devices"])
    if node["sync_batchnorm"] is True and num_ranks > 1 and not on_gpu:
        raise ConfigError("trainer.sync_batchnorm=true needs GPUs: PyTorch synchronises batch norms only there")
    for called, keywords in zip((DDPOptions, lightning.Trainer), _divided(node), strict=True):
        bind(called, "trainer", **keywords)
    _strategy(value_of(node["strategy"], "trainer.strategy"), config, num_ranks=num_ranks)


def _check_numbers(node: Any, where: str) -> None:
    """Raises ConfigError for a number that is not finite; no key takes one."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in children:
        key = f"{where}.{name}" if where else str(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number; got {value}")
        _check_numbers(value, key)


def _check_monitor(monitor: str | None, where: str) -> None:
    if monitor not in SCORES:
        raise ConfigError(f"{where}.monitor must be a score that is logged: {', '.join(SCORES)}; got {monitor!r}")


def _check_image_size(built: nn.Module, settings: DataConfig) -> None:
    check_size = getattr(built, "check_image_size", None)
    try:
        if check_size is not None:
            check_size(settings.image_size)
        else:
            built.eval()(torch.empty(1, settings.channels, settings.image_size, settings.image_size, device="meta"))
    except (ValueError, RuntimeError) as error:
        if check_size is not None:
            raise ConfigError(str(error)) from error
        raise ConfigError(f"data.image_size={settings.image_size} does not fit the net: {error}") from error
