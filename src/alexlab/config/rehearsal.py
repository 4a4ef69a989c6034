"""Rehearsal of a run in a child process: finds values that Lightning or torch reject before any work, and names their keys.

Many values pass every constructor and fail only when a run starts, validates or ends. A net of two layers is trained for two
epochs of two steps with the real Trainer, optimizer, schedule, loss and callbacks, which takes 0.2 s. It runs in a child process
because training starts threads, and CUDA on a GPU, after which ranks could not be forked from this process.
"""

import contextlib
import logging
import multiprocessing
import os
import resource
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor, nn

from alexlab.config import build, build_data
from alexlab.config.culprits import culprits, sentence
from alexlab.config.instantiate import Config, entries, value_of
from alexlab.config.resolve import data_world_size
from alexlab.config.stand_ins import NoCheckpoints, StandIn, StandInData, Started, StopAfterStart
from alexlab.config.trainer import build_plugins, build_trainer
from alexlab.config.validate import check_objects
from alexlab.data.samplers import EvalBatchSampler, TrainBatchSampler
from alexlab.data.splits import Splits
from alexlab.distributed import hardware, ranks
from alexlab.distributed.devices import requested_gpus
from alexlab.errors import AlexlabError, ConfigError, NumericError
from alexlab.models.compile import compile_net
from alexlab.records.safe_load import check_plain
from alexlab.training.nonfinite import NonFiniteReport

TIMEOUT_S = 120.0  # a longer rehearsal is inconclusive
MEMORY = 8 << 30  # bytes, limit of the child process
SIDES = 70, 90  # pixels, of the image for the transforms
TRIES = 4  # per transform, since most are random
# Trainer arguments that shorten a run.
SHORT = {
    **dict.fromkeys(("min_epochs", "min_steps", "max_time")),
    "max_epochs": 2,
    "max_steps": -1,
    "check_val_every_n_epoch": 1,
    "val_check_interval": 1.0,
    "limit_train_batches": 1.0,
    "limit_val_batches": 1.0,
    "limit_test_batches": 1.0,
    "overfit_batches": 0.0,
}
STOCK_MODULE = {"_target_": "alexlab.training.module.Classifier"}  # a user's may need more than the small net has
HERE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "enable_model_summary": False}

log = logging.getLogger(__name__)


def rehearse(config: Config, splits: Splits, *, num_ranks: int) -> None:
    """Train a small net with the config on one device.

    Raises:
        ConfigError: naming the key without which the rehearsal succeeds. A failure that no key explains is only logged.
    """
    accelerator = config["trainer"]["accelerator"]
    gpus = requested_gpus(accelerator=accelerator, devices=config["trainer"]["devices"])
    devices = ["cpu", *(["gpu"] if gpus else ["mps"] if accelerator == "mps" else [])]
    failure = None
    # The CPU first: initializing CUDA takes seconds, so only failures on the CPU are repeated on the GPU.
    for device in devices:
        failure = _failure(config, splits, num_ranks, device, names_key=device == devices[-1])
        if failure is None:
            return
    assert failure is not None
    if failure[0]:
        raise ConfigError(failure[1])
    log.warning(
        "the run starts, although training a tiny net with the same settings failed and no config key explains why: %s",
        failure[1],
    )


def _failure(
    config: Config, splits: Splits, num_ranks: int, accelerator: str, *, names_key: bool = True
) -> tuple[bool, str] | None:
    """Return None if a rehearsal succeeds, else whether a key explains the failure, and the message."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="alexlab_") as folder:
        child = context.Process(
            target=_child,
            args=(sender, config, splits, num_ranks, accelerator, Path(folder), os.getpid()),
            kwargs={"names_key": names_key},
        )
        child.start()
        sender.close()
        try:
            _import_tensorboard(config)
            found: tuple[bool, str] | None = receiver.recv() if receiver.poll(TIMEOUT_S) else None
        except EOFError:  # the child was killed
            found = None
        finally:
            child.kill()
            child.join()
            receiver.close()
    return found


def _import_tensorboard(config: Config) -> None:
    """Import what the logger of the training needs while the child process works: 0.1 s; jobs of a sweep are forked from here."""
    if any(node["_target_"].endswith("TensorBoard") for node in entries(config["logger"]).values()):
        import torch.utils.tensorboard  # noqa: F401


def _child(
    sender: Any,
    config: Config,
    splits: Splits,
    num_ranks: int,
    accelerator: str,
    folder: Path,
    parent: int,
    *,
    names_key: bool,
) -> None:
    """Rehearse, and send what was found; nothing is printed, and nothing written outside the folder."""
    hardware.die_with_parent(parent)
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    ranks.clear_environment()
    torch.set_num_threads(1)
    if accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the first backward pass would look for GPUs
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, resource.RLIM_INFINITY))

    def perform(changed: Config) -> None:
        with contextlib.suppress(NumericError):  # the real images and net may stay finite
            _perform(changed, splits, num_ranks, accelerator, folder)

    try:
        perform(config)
    except AlexlabError as error:
        sender.send((True, str(error)))
    except Exception as error:
        keys = culprits(config, str(error), perform) if names_key else ""
        sender.send((bool(keys), f"{keys} cannot be used: {sentence(error)}" if keys else sentence(error)))
    else:
        sender.send(None)


def _address_space() -> int:
    """Return the address space of this process in bytes (Linux).

    Raises:
        OSError: on other systems.
    """
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _perform(config: Config, splits: Splits, num_ranks: int, accelerator: str, folder: Path) -> None:
    check_objects(config, splits, num_ranks=num_ranks)
    build_trainer(_on_one_device(config, accelerator), folder, num_ranks=1)  # with all callbacks
    compile_net(nn.Identity(), **config["compile"])
    _transform_images(config)
    lengths = _lengths(config, splits, num_ranks)
    for changes, counts in (({}, lengths), (SHORT, dict.fromkeys(lengths, 2))):
        node = {**_on_one_device(config, accelerator, **changes), "callbacks": _of_lightning(config["callbacks"])}
        plugins = build_plugins(value_of(node["trainer"]["plugins"], "trainer.plugins"))
        others = [plugin for plugin in plugins if not isinstance(plugin, CheckpointIO)]
        node["trainer"]["plugins"] = [*others, NoCheckpoints()]
        trainer = build_trainer(node, folder, num_ranks=1)
        data = StandInData(counts, channels=config["data"]["channels"], num_classes=len(splits.classes))
        groups = {**config["param_groups"], "layer_lrs": {}}  # the stand-in has other layers
        data_node = {**config["data"], "mean_image": False}  # its batches have another size
        changed = {**config, "module": STOCK_MODULE, "param_groups": groups, "data": data_node}
        module = build.classifier(changed, splits, device="meta")
        module.net = StandIn(config["data"]["channels"], build.num_outputs(module.loss, len(splits.classes)))
        kept = [each for each in trainer.callbacks if not isinstance(each, NonFiniteReport)]  # type: ignore[attr-defined]
        trainer.callbacks = kept if changes else [*kept, StopAfterStart()]  # type: ignore[attr-defined]
        with contextlib.suppress(Started):
            trainer.fit(module, datamodule=data)
        check_plain([optimizer.state_dict() for optimizer in trainer.optimizers], "optimizer")
        check_plain([entry.scheduler.state_dict() for entry in trainer.lr_scheduler_configs], "scheduler")
        with contextlib.suppress(Started):
            trainer.test(module, datamodule=data, verbose=False)
    if module.dtype != torch.float32:
        _train_step(config, splits, module.dtype, trainer.strategy.root_device)


def _train_step(config: Config, splits: Splits, dtype: Any, device: torch.device) -> None:
    """Train the net itself for a step, in a precision that some layers do not support, such as LRN."""
    net = build.classifier({**config, "compile": {}}, splits).net.to(device, dtype)
    sides = [config["data"]["image_size"]] * 2
    net(torch.zeros(2, config["data"]["channels"], *sides, device=device, dtype=dtype)).sum().backward()


def _on_one_device(config: Config, accelerator: str, **changes: Any) -> Config:
    node = {**config["trainer"], **HERE, "accelerator": accelerator, **changes}
    if isinstance(node["profiler"], dict):
        node["profiler"] = {key: value for key, value in node["profiler"].items() if key != "dirpath"}
    logger = {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger"}} if entries(config["logger"]) else {}
    return {**config, "trainer": node, "logger": logger}


def _of_lightning(nodes: Config) -> Config:
    """Return the callbacks to rehearse: Lightning's. Ours check their arguments, and a user's may have side effects."""
    return {
        name: node
        for name, node in entries(nodes).items()
        if node["_target_"].startswith("lightning.") and "Progress" not in node["_target_"]
    }


def _lengths(config: Config, splits: Splits, num_ranks: int) -> dict[str, int]:
    """Return the number of batches of each split on a rank."""
    shares, batch_size = data_world_size(config, num_ranks), config["data"]["batch_size"]
    train = TrainBatchSampler(
        splits.train.labels,
        batch_size=batch_size,
        num_ranks=shares,
        accumulation_steps=config["trainer"]["accumulate_grad_batches"],
    )
    tests = {"val": splits.val, "test": splits.test or splits.val}
    evals = {
        name: EvalBatchSampler(len(split), batch_size=batch_size, num_ranks=shares) for name, split in tests.items()
    }
    return {"train": len(train), **{name: len(batches) for name, batches in evals.items()}}


def _transform_images(config: Config) -> None:
    """Apply the transforms to images of noise.

    Raises:
        ConfigError: naming the transform that fails, or the stage that returns images of the wrong type or shape.
    """
    channels, size = config["data"]["channels"], config["data"]["image_size"]
    generator = torch.Generator().manual_seed(0)
    for stage in ("eval", "train"):
        where, nodes = f"augmentation.{stage}", entries(config["augmentation"][stage])
        made = {name: value_of(node, f"{where}.{name}") for name, node in nodes.items()}
        for number in range(TRIES):
            sides = SIDES[:: 1 if number % 2 else -1]
            image = torch.randint(0, 256, (*sides, channels), dtype=torch.uint8, generator=generator).permute(2, 0, 1)
            for name, transform in made.items():
                try:
                    image = transform(image)
                except Exception as error:
                    raise ConfigError(f"{where}.{name} cannot be used: {sentence(error)}") from error
            found = (str(image.dtype), tuple(image.shape)) if isinstance(image, Tensor) else (type(image).__name__, ())
            if found != ("torch.uint8", (channels, size, size)):
                raise ConfigError(
                    f"{where} must return torch.uint8 images of shape {(channels, size, size)} for data.image_size={size}; "
                    f"got {found[0]} of shape {found[1]}"
                )
    views = build_data.extra_views(config)
    if views is not None:
        views(torch.zeros(channels, *SIDES, dtype=torch.uint8))
