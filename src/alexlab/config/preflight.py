"""All checks before a run: the dataset, the objects, the other nodes, and a rehearsal."""

import socket
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from alexlab.config.culprits import naming_keys
from alexlab.config.data import data_config, find_splits
from alexlab.config.instantiate import Config, bind
from alexlab.config.rehearsal import rehearse
from alexlab.config.resolve import accumulation_steps, fill_statistics, inline_class_names
from alexlab.config.validate import check_objects
from alexlab.data.fingerprint import describe_images, require_same_images
from alexlab.data.splits import Splits
from alexlab.distributed import devices, ranks
from alexlab.distributed.consistency import fingerprint, require_same
from alexlab.distributed.launch import Limits
from alexlab.errors import ConfigError
from alexlab.records.layout import LAST
from alexlab.records.provenance import versions
from alexlab.records.run import Run
from alexlab.training.console import quiet_lightning


def check_config(config: Config, *, remote: bool = False) -> None:
    """Check a config and its dataset without writing anything.

    Args:
        config: composed config as plain data.
        remote: the run is for another machine, so the devices of this one do not matter.

    Raises:
        AlexlabError: for the first value that cannot be used.
    """
    with naming_keys(config, _check_config):
        _check_config(config, remote=remote)


def _check_config(config: Config, *, remote: bool = False) -> None:
    splits = find_splits(config)
    num_ranks = _num_local_ranks(config, remote=remote)
    _check_filled(inline_class_names(config, splits), splits, num_ranks=num_ranks, remote=remote)


def check_run(run: Run, splits: Splits) -> tuple[Run, int, dict[str, Any]]:
    """Check a run without writing anything.

    Returns:
        The run with every file that its config names read in, the number of ranks on this node, and the description of the
        images for the run record.

    Raises:
        AlexlabError: for the first value that cannot be used.
    """
    with naming_keys(run.config, _check_config) if ranks.rank() == 0 else nullcontext():
        local_ranks = _num_local_ranks(run.config)
        config = inline_class_names(run.config, splits)
        images = describe_images(splits)
        _require_same_nodes(config, images, local_ranks)
        if ranks.is_distributed() and accumulation_steps(config, ranks.world_size()) is None:
            raise ConfigError(
                f"data.batch_size={config['data']['batch_size']} must be divisible among the {ranks.world_size()} remaining "
                "ranks without a larger batch on any of them"
            )
        require_same_images(run.recorded_images, images, where=data_config(config).location)
        checked = config
        if run.resumed and (run.dir / LAST).is_file():  # its weights replace those of model.weights
            checked = {**config, "model": {**config["model"], "weights": None}}
        num_ranks = max(local_ranks * config["trainer"]["num_nodes"], ranks.world_size())
        _check_filled(checked, splits, num_ranks=num_ranks, rehearsed=run.rehearsed)
    return replace(run, config=config), local_ranks, images


def _require_same_nodes(config: Config, images: dict[str, Any], num_ranks: int) -> None:
    """Check that all ranks, which may be on nodes with other files, train the same.

    Raises:
        ConfigError: on every rank, naming the node that differs.
    """
    if ranks.world_size() == 1:
        return
    counts = {f"images of {name}": count for name, count in images["counts"].items()}
    data = {"classes": images["class_names"], **counts, "files and sizes": images["fingerprint"]}
    own = fingerprint(config, data=data, versions=versions(), num_ranks=num_ranks)
    gathered = ranks.all_gather("fingerprint", [f"{socket.gethostname()} (rank {ranks.rank()})", own])
    for name, theirs in gathered[1:]:
        require_same(gathered[0][1], theirs, name=name)


def _check_filled(
    config: Config, splits: Splits, *, num_ranks: int, remote: bool = False, rehearsed: bool = False
) -> None:
    config = fill_statistics(config, splits, dummy=True)[0]
    check_objects(config, splits, num_ranks=num_ranks, remote=remote)
    # A job on another machine that needs its device is rehearsed there.
    if not rehearsed and not (remote and config["trainer"]["accelerator"] in ("gpu", "cuda", "mps")):
        rehearse(config, splits, num_ranks=num_ranks)


def _num_local_ranks(config: Config, *, remote: bool = False) -> int:
    """Return the number of ranks on this node, after checking the nodes and the limits of the launcher."""
    quiet_lightning()
    bind(Limits, "elastic", **config["elastic"])
    Limits(**config["elastic"])
    trainer, num_nodes = config["trainer"], ranks.num_nodes()
    if num_nodes > trainer["num_nodes"]:
        raise ConfigError(f"trainer.num_nodes must be the {num_nodes} nodes of torchrun; got {trainer['num_nodes']}")
    if not ranks.is_distributed() and trainer["num_nodes"] > 1 and not remote:
        raise ConfigError(
            f"trainer.num_nodes={trainer['num_nodes']} needs ranks on several nodes, started by torchrun, srun or mpirun: "
            f"torchrun --nnodes={trainer['num_nodes']} ... src/train.py trainer.num_nodes={trainer['num_nodes']} ...; see "
            "docs/distributed.md"
        )
    return devices.num_ranks(accelerator=trainer["accelerator"], devices=trainer["devices"], remote=remote)
