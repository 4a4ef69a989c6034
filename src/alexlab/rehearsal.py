"""A rehearsal of a run in a child process: what Lightning and torch refuse is found before any work, and its key named.

Many values pass every constructor and fail only when a run begins, validates or ends. So a net of two layers is trained for
two epochs of two steps by the real Trainer, optimizer, schedule, loss and callbacks. This takes 0.2 s. In a child, since
training starts threads, and CUDA's where there is a GPU, and ranks could not be forked from this process afterwards.
"""

import contextlib
import logging
import multiprocessing
import os
import resource
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import lightning
import torch
import yaml
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from alexlab import build, machine
from alexlab.compiling import compile_net
from alexlab.data.folder import Splits
from alexlab.data.order import EvalBatches, TrainBatches
from alexlab.errors import AlexlabError, ConfigError
from alexlab.launch import RANK_VARIABLES, wanted_gpus
from alexlab.nodes import Config, value_of
from alexlab.overrides import CONFIG_DIR

TIMEOUT_S = 120.0  # a rehearsal that takes longer says nothing
MEMORY = 8 << 30  # bytes that it may take
SIDES = 70, 90  # of the image that the transforms are tried on
TRIES = 4  # with each transform; most are random
# Whole runs, of which a rehearsal is a small part.
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
HERE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "enable_model_summary": False}

log = logging.getLogger(__name__)


def rehearse(config: Config, splits: Splits, *, num_ranks: int) -> None:
    """Train a small net as the config says, on one device.

    Raises:
        ConfigError: naming the key without which the rehearsal succeeds. A failure that no key explains is none of the
            config's: it is left to the run.
    """
    gpus = wanted_gpus(accelerator=config["trainer"]["accelerator"], devices=config["trainer"]["devices"])
    if machine.jobs_elsewhere and config["trainer"]["accelerator"] in ("gpu", "cuda", "mps"):
        return  # the job rehearses on its machine
    # On the CPU first: starting CUDA takes seconds. Only what fails there is tried on the device of the run.
    failure = _failure(config, splits, num_ranks, "cpu")
    accelerator = "gpu" if gpus else config["trainer"]["accelerator"]
    if failure is not None and accelerator not in ("auto", "cpu"):
        failure = _failure(config, splits, num_ranks, accelerator)
    else:
        accelerator = "cpu"
    if failure is None:
        return
    if failure[0]:
        raise ConfigError(failure[1])
    keys = culprits(config, failure[1], lambda changed: _failure(changed, splits, num_ranks, accelerator) is None)
    if keys:
        raise ConfigError(f"{keys} cannot be used: {failure[1]}")
    log.warning("a rehearsal of the run failed, and no key explains it: %s", failure[1])


def explain(error: Exception, config: Config, check: Callable[[Config], Any]) -> NoReturn:
    """Raise a ConfigError that names the key without which a check succeeds, or the error where there is none."""

    def passes(changed: Config) -> bool:
        try:
            check(changed)
        except Exception:
            return False
        return True

    keys = culprits(config, str(error), passes)
    if keys:
        raise ConfigError(f"{keys} cannot be used: {sentence(error)}") from error
    raise error


def culprits(config: Config, text: str, passes: Callable[[Config], bool]) -> str:
    """Return the keys, with their values, each of which makes a config pass where it has its default; "" for none.

    Args:
        config: one that does not pass.
        text: of the error; keys and values that it names are tried first.
        passes: tells whether a config passes.
    """
    keys = list(_keys(config))
    named = [words for words, _ in keys if any(len(word) > 1 and word in text for word in _words(words))]
    for chosen in (
        [each for each in keys if each[0] in named],
        [each for each in keys if each[0] not in named],
        _nodes(config),
    ):
        found = [words for words, changed in chosen if passes(changed)]
        if found:
            return " with ".join(found[:3])
    defaults = _defaults()["trainer"]
    together = {key: value for key, value in config["trainer"].items() if value != defaults.get(key)}
    if not passes(_with(config, "trainer", {key: defaults.get(key) for key in together})):
        return ""
    for key in tuple(together):
        others = [other for other in together if other != key]
        if passes(_with(config, "trainer", {other: defaults.get(other) for other in others})):
            del together[key]
    return " with ".join(f"trainer.{key}={_shown(value)}" for key, value in together.items())


def _failure(config: Config, splits: Splits, num_ranks: int, accelerator: str) -> tuple[bool, str] | None:
    """Return how a rehearsal fails: whether the sentence names its key, and the sentence; None for a success."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="alexlab_") as folder:
        child = context.Process(
            target=_child, args=(sender, config, splits, num_ranks, accelerator, Path(folder), os.getpid())
        )
        child.start()
        sender.close()
        try:
            found: tuple[bool, str] | None = receiver.recv() if receiver.poll(TIMEOUT_S) else None
        except EOFError:  # it was killed
            found = None
        finally:
            child.kill()
            child.join()
            receiver.close()
    return found


def _child(
    sender: Any, config: Config, splits: Splits, num_ranks: int, accelerator: str, folder: Path, parent: int
) -> None:
    """Rehearse, and send what was found; nothing is printed, and nothing written outside the folder."""
    machine.end_with(parent)
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    if accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the first backward pass would look for GPUs
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, resource.RLIM_INFINITY))
    try:
        _perform(config, splits, num_ranks, accelerator, folder)
    except AlexlabError as error:
        sender.send((True, str(error)))
    except Exception as error:
        sender.send((False, sentence(error)))
    else:
        sender.send(None)


def _address_space() -> int:
    """Return the bytes of memory that this process has mapped. Linux only.

    Raises:
        OSError: elsewhere.
    """
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def sentence(error: Exception) -> str:
    """Return what an error says, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _perform(config: Config, splits: Splits, num_ranks: int, accelerator: str, folder: Path) -> None:
    build.check(config, splits, num_ranks=num_ranks)
    build.trainer(_on_one_device(config, accelerator), folder, num_ranks=1)  # with all callbacks
    compile_net(nn.Identity(), **config["compile"])
    _transform_images(config)
    lengths = _lengths(config, splits, num_ranks)
    for changes, counts in (({}, lengths), (SHORT, dict.fromkeys(lengths, 2))):
        node = {**_on_one_device(config, accelerator, **changes), "callbacks": _of_lightning(config["callbacks"])}
        plugins = build.plugins(value_of(node["trainer"]["plugins"], "trainer.plugins"))
        others = [plugin for plugin in plugins if not isinstance(plugin, CheckpointIO)]
        node["trainer"]["plugins"] = [*others, Nowhere()]
        trainer = build.trainer(node, folder, num_ranks=1)
        data = StandInData(counts, channels=config["data"]["channels"], num_classes=len(splits.classes))
        module = build.classifier(config, splits, device="meta")
        module.net = StandIn(config["data"]["channels"], module.loss.num_outputs)  # type: ignore[arg-type]
        if not changes:
            trainer.callbacks.append(Begun())  # type: ignore[attr-defined]
        with contextlib.suppress(_HasBegun):
            trainer.fit(module, datamodule=data)
        with contextlib.suppress(_HasBegun):
            trainer.test(module, datamodule=data, verbose=False)


def _on_one_device(config: Config, accelerator: str, **changes: Any) -> Config:
    node = {**config["trainer"], **HERE, "accelerator": accelerator, **changes}
    if isinstance(node["profiler"], dict):
        node["profiler"] = {key: value for key, value in node["profiler"].items() if key != "dirpath"}
    logger = {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger"}} if build.entries(config["logger"]) else {}
    return {**config, "trainer": node, "logger": logger}


def _of_lightning(nodes: Config) -> Config:
    """Return the callbacks that a rehearsal runs: ours check their arguments, those of a person may do anything."""
    return {
        name: node
        for name, node in build.entries(nodes).items()
        if node["_target_"].startswith("lightning.") and "Progress" not in node["_target_"]
    }


def _lengths(config: Config, splits: Splits, num_ranks: int) -> dict[str, int]:
    """Return the number of batches of each split on a rank."""
    shares, batch_size = build.image_shares(config, num_ranks), config["data"]["batch_size"]
    train = TrainBatches(
        splits.train.labels,
        batch_size=batch_size,
        num_ranks=shares,
        accumulate=config["trainer"]["accumulate_grad_batches"],
    )
    tests = {"val": splits.val, "test": splits.test or splits.val}
    evals = {name: EvalBatches(len(split), batch_size=batch_size, num_ranks=shares) for name, split in tests.items()}
    return {"train": len(train), **{name: len(batches) for name, batches in evals.items()}}


def _transform_images(config: Config) -> None:
    """Try the transforms on images of noise.

    Raises:
        ConfigError: naming the transform that fails, or the stage whose images are not as the net takes them.
    """
    channels, size = config["data"]["channels"], config["data"]["image_size"]
    generator = torch.Generator().manual_seed(0)
    for stage in ("eval", "train"):
        where, nodes = f"augmentation.{stage}", build.entries(config["augmentation"][stage])
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
                    f"{where} must give images of whole numbers, torch.uint8, of shape {(channels, size, size)} as "
                    f"data.image_size says; its transforms give {found[0]} of shape {found[1]}"
                )
    views = build.final_views(config)
    if views is not None:
        views(torch.zeros(channels, *SIDES, dtype=torch.uint8))


def _defaults() -> Config:
    """Return the defaults of the groups whose keys are looked at one by one."""
    files = {"trainer": "trainer/default.yaml", "data": "data/folder.yaml"}
    defaults = {group: yaml.safe_load((CONFIG_DIR / path).read_text()) for group, path in files.items()}
    whole = yaml.safe_load((CONFIG_DIR / "train.yaml").read_text())
    return {**defaults, **{group: whole[group] for group in ("compile", "elastic", "parameters", "final")}}


def _keys(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield configs with one key reset to its default, each with the key and the value that it had."""
    for group, defaults in _defaults().items():
        for key, value in config[group].items():
            default = defaults.get(key)
            if value == default or (isinstance(default, str) and default.startswith(("$", "?"))):
                continue
            kept = {name: other for name, other in config[group].items() if name != key}
            changed = {**kept, key: default} if key in defaults else kept
            yield f"{group}.{key}={_shown(value)}", {**config, group: changed}
    for group in ("loss", "optimizer", "scheduler", "model"):
        for key, value in config[group].items():
            if key not in ("_target_", "lr"):
                kept = {name: other for name, other in config[group].items() if name != key}
                yield f"{group}.{key}={_shown(value)}", {**config, group: kept}
    if "lr" in config["optimizer"]:
        yield f"optimizer.lr={_shown(config['optimizer']['lr'])}", _with(config, "optimizer", {"lr": 1e-3})
    yield f"seed={_shown(config['seed'])}", {**config, "seed": 1}
    for group in ("callbacks", *(f"augmentation.{stage}" for stage in ("batch", "train", "eval"))):
        outer, _, inner = group.partition(".")
        nodes = build.entries(config[outer][inner] if inner else config[outer])
        for name, node in nodes.items():
            for key in [key for key in node if key != "_target_"]:
                kept = {other: value for other, value in node.items() if other != key}
                yield f"{group}.{name}.{key}={_shown(node[key])}", _with(config, group, {name: kept})


def _nodes(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield configs without one node."""
    for group in ("callbacks", "augmentation.batch", "augmentation.train"):
        outer, _, inner = group.partition(".")
        for name in build.entries(config[outer][inner] if inner else config[outer]):
            yield f"{group}.{name}", _with(config, group, {name: None})
    plain = {
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 1e-3},
        "scheduler": {"_target_": "alexlab.schedules.constant"},
    }
    for group, node in plain.items():
        yield f"{group}={config[group].get('_target_')}", {**config, group: node}


def _words(key: str) -> tuple[str, str]:
    """Split `group.key=value` into key and value."""
    path, _, value = key.partition("=")
    return path.rpartition(".")[2], value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _with(config: Config, group: str, changes: Config) -> Config:
    outer, _, inner = group.partition(".")
    return {**config, outer: _with(config[outer], inner, changes) if inner else {**config[outer], **changes}}


class StandIn(nn.Module):
    """A convolution, a norm and a linear layer, so that there is a parameter of each kind."""

    def __init__(self, channels: int, num_outputs: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 2, 3, padding=1), nn.BatchNorm2d(2))
        self.classifier = nn.Linear(2, num_outputs)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the nets of runs

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


class StandInData(lightning.LightningDataModule):
    """Loaders with given numbers of batches of two images of 4 x 4 pixels."""

    def __init__(self, counts: dict[str, int], *, channels: int, num_classes: int) -> None:
        super().__init__()
        self.loader = {name: Batches(count, channels, num_classes) for name, count in counts.items()}

    def train_dataloader(self) -> Any:
        return self.loader["train"]

    def val_dataloader(self) -> Any:
        return self.loader["val"]

    def test_dataloader(self) -> Any:
        return self.loader["test"]


class Batches:
    """A loader of grey images."""

    def __init__(self, count: int, channels: int, num_classes: int) -> None:
        self.count = count
        self.dataset = range(2 * count)
        self.batch = torch.full((2, channels, 4, 4), 100, dtype=torch.uint8), torch.tensor([0, num_classes - 1])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.count)


class _HasBegun(Exception):  # noqa: N818 - no error
    pass


class Begun(Callback):
    """Ends a run of the real length after its first batch, when Lightning has looked at the lengths of its loaders."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx:
            raise _HasBegun

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            raise _HasBegun

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        raise _HasBegun

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        raise _HasBegun


class Nowhere(CheckpointIO):
    """Writes no checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        pass

    def load_checkpoint(self, *args: Any, **options: Any) -> dict[str, Any]:
        raise FileNotFoundError("a rehearsal has no checkpoint")

    def remove_checkpoint(self, path: Any) -> None:
        pass
