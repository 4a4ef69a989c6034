"""Values of a config that depend on the data or the machine, filled in before the run starts."""

import torch

from alexlab.config.data import data_config
from alexlab.config.instantiate import Config, entries, parts
from alexlab.data.class_names import display_names, read_class_names
from alexlab.data.splits import Splits
from alexlab.data.statistics import ChannelStatistics, check_std, measure_statistics
from alexlab.data.transforms import PCAColorNoise
from alexlab.distributed import devices
from alexlab.distributed.devices import requested_gpus
from alexlab.distributed.hardware import cpu_has_bfloat16
from alexlab.distributed.ranks import broadcast
from alexlab.errors import ConfigError

TWO_TOWERS = "two_towers"  # value of trainer.strategy
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
DUMMY_STATISTICS = ChannelStatistics(0, (0.5,) * 3, (0.25,) * 3, (0.1, 0.01, 0.001), IDENTITY)


def inline_class_names(config: Config, splits: Splits) -> Config:
    """Replace the file name in `class_names` by the content of the file, so that a checkpoint needs no other file."""
    names = config["class_names"]
    if isinstance(names, str):
        names = read_class_names(names)
        display_names(splits.classes, names)
    elif names is not None and not isinstance(names, dict):
        raise ConfigError(f"class_names must be null or a JSON file; got {names!r}")
    return {**config, "class_names": names}


def fill_statistics(config: Config, splits: Splits, *, dummy: bool = False) -> tuple[Config, ChannelStatistics | None]:
    """Fill in statistics of the training split that are null, and return the config and the statistics.

    These are `data.mean`, `data.std` and the principal components of PCAColorNoise.

    Args:
        config: composed config.
        splits: dataset.
        dummy: fill in numbers of the right shape without measuring, for a check.
    """
    node, views = dict(config["data"]), config["augmentation"]
    if node.get("mean_image") and node["mean"] is None:
        node["mean"] = [0.0] * node["channels"]
    if set(views) != {"train", "eval", "batch"}:
        raise ConfigError(f"augmentation must have train, eval and batch; got {', '.join(views)}")
    noises = {
        name: transform
        for name, transform in entries(views["train"]).items()
        if _is_noise(transform, f"augmentation.train.{name}") and transform.get("eigenvalues") is None
    }
    if noises and node["channels"] != 3:
        raise ConfigError(f"augmentation.train.{next(iter(noises))} needs colour images; got model.in_channels=1")
    if node["mean"] is not None and node["std"] is not None and not noises:
        return {**config, "data": node}, None
    found = (
        DUMMY_STATISTICS
        if dummy
        else measure_statistics(
            splits.train, decoding=data_config(config).decoding, skip_unreadable=data_config(config).on_error == "skip"
        )
    )
    if node["std"] is None:
        check_std(found)
    node["mean"] = found.mean if node["mean"] is None else node["mean"]
    node["std"] = found.std if node["std"] is None else node["std"]
    axes = {"eigenvalues": found.eigenvalues, "eigenvectors": found.eigenvectors, "mean": found.mean}
    train = (views["train"] or {}) | {name: {**transform, **axes} for name, transform in noises.items()}
    return {**config, "data": node, "augmentation": {**views, "train": train}}, found


def broadcast_statistics(config: Config, splits: Splits) -> tuple[Config, ChannelStatistics | None]:
    """Return the result of `fill_statistics` on rank 0 to every node, since machines may round differently."""
    statistics: list[ChannelStatistics | None] = [None]

    def measure() -> Config:
        filled, statistics[0] = fill_statistics(config, splits)
        return {name: filled[name] for name in ("data", "augmentation")}

    filled = broadcast("statistics", measure)
    own = {name: config["data"][name] for name in config["data"] if name not in ("mean", "std")}
    return {**config, "data": {**filled["data"], **own}, "augmentation": filled["augmentation"]}, statistics[0]


def _is_noise(node: Config | None, where: str) -> bool:
    return node is not None and parts(node, where)[0] is PCAColorNoise


def resolve_auto(node: Config) -> Config:
    """Resolve the values of a `trainer` node that depend on the machine: `precision=auto` and `benchmark=null`.

    Devices with bfloat16 arithmetic get `bf16-mixed`. On a CPU that has it a step is 1.8 times as fast at full and half width
    and 1.3 to 1.7 times with the other nets (2 cores of an AMD EPYC, 2026-11-23). On a GPU cuDNN searches for its fastest
    algorithms, which may differ from run to run.
    """
    on_gpu = bool(requested_gpus(accelerator=node["accelerator"], devices=node["devices"]))
    found = dict(node)
    if node["precision"] == "auto":
        has_bf16 = torch.cuda.is_bf16_supported(False) if on_gpu else cpu_has_bfloat16()
        found["precision"] = "bf16-mixed" if has_bf16 else "32-true"
    if node["benchmark"] is None and on_gpu:
        found["benchmark"] = not node["deterministic"]
    return found


def data_world_size(config: Config, num_ranks: int) -> int:
    """Return the number of ranks that divide the images among them; with two towers every rank sees all images."""
    return 1 if config["trainer"]["strategy"] == TWO_TOWERS else num_ranks


def accumulation_steps(config: Config, num_ranks: int) -> int | None:
    """Return the accumulation steps that keep the global batch size on `num_ranks` ranks without growing the per-rank batch.

    With all ranks of the config that is `trainer.accumulate_grad_batches`, with fewer ranks it is more. None if the batch
    cannot be divided that way.
    """
    node, batch = config["trainer"], config["data"]["batch_size"]
    all_ranks = node["num_nodes"] * devices.num_ranks(accelerator=node["accelerator"], devices=node["devices"])
    full_size, size = data_world_size(config, all_ranks), data_world_size(config, num_ranks)
    rank_batch = batch // (full_size * node["accumulate_grad_batches"])
    counts = range(1, batch // size + 1)
    return next((n for n in counts if batch % (size * n) == 0 and batch // (size * n) <= rank_batch), None)
