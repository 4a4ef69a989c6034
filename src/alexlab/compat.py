"""Every private name of another library that alexlab uses, each behind one function.

Checked with lightning 2.6.6, torch 2.11 and 2.15, torchvision 0.26 and 0.29, torchmetrics 1.9, hydra 1.3.8, optuna 5.0,
ray 2.60 and huggingface_hub 2.4. A minor release may rename any of them: `tests/test_compat.py` then fails, and the fix
belongs here.
`tests/project/test_private_names.py` keeps private names out of all other modules. Libraries are imported inside the
functions, since the command line reads this module before it imports torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import lightning
    import optuna
    from hydra.core.default_element import ResultDefault
    from hydra.core.utils import JobReturn
    from hydra.plugins.config_source import ConfigResult
    from omegaconf import DictConfig
    from torch import Tensor
    from torch.utils.data import DataLoader
    from torch.utils.tensorboard import SummaryWriter

# Python


def python3_name(module: str, name: str) -> tuple[str, str]:
    """Return where Python 3 has a class that a pickle of Python 2 names.

    Works around: `pickle` applies this table while it unpickles and does not publish it. Checked with Python 3.11.
    """
    return NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))


# PyTorch


def foreach_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of each tensor as one tensor (N,), computed by a few fused kernels.

    Works around: `torch.nn.utils.get_total_norm` is fused too, but returns a single norm of all tensors. Checked with torch 2.11
    and 2.15.
    """
    import torch

    return torch.stack(torch._foreach_norm(list(tensors)))


def shut_down_workers(loader: DataLoader[Any]) -> None:
    """Terminate the persistent worker processes of a data loader, if it has any.

    Works around: a DataLoader terminates them only when it is garbage collected, at which time their queues may already be
    closed. Checked with torch 2.11 and 2.15.
    """
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    if isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
        loader._iterator._shutdown_workers()
        loader._iterator = None


def pickled_module(node: Any) -> tuple[dict[str, Any], Mapping[str, Any]] | None:
    """Return the entries of a pickled module's own state dict, and its submodules by name; None if it is no module.

    Works around: `nn.Module.state_dict` needs the module's class, and a class that a file names is not imported. Checked with
    torch 2.11 and 2.15.

    Args:
        node: placeholder object with the attributes that were pickled.
    """
    attributes = getattr(node, "__dict__", {})
    children = attributes.get("_modules")
    if not isinstance(children, Mapping):
        return None
    transient = attributes.get("_non_persistent_buffers_set", ())
    tensors = {}
    for kind in ("_parameters", "_buffers"):
        for name, value in attributes.get(kind, {}).items():
            if name not in transient:
                tensors[name] = value
    return tensors, children


def summary_writer(log_dir: str, open_file: Callable[[str], Any], *, purge_step: int | None = None) -> SummaryWriter:
    """Return a SummaryWriter that writes to a given file object.

    Works around: SummaryWriter always creates an EventFileWriter, whose thread dies at the first event that a full disk
    rejects. Checked with torch 2.11 and 2.15.

    Args:
        log_dir: folder of the event file.
        open_file: called with `log_dir`; returns an object with the methods of tensorboard's EventFileWriter.
        purge_step: TensorBoard hides events of earlier files from this step on.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from torch.utils.tensorboard import FileWriter, SummaryWriter

    class Writer(SummaryWriter):
        file_writer: Any
        all_writers: Any

        def _get_file_writer(self) -> Any:
            if self.file_writer is None:
                self.file_writer = FileWriter.__new__(FileWriter)  # its constructor starts the thread
                self.file_writer.event_writer = open_file(log_dir)
                self.all_writers = {log_dir: self.file_writer}
                if self.purge_step is not None:
                    self.file_writer.add_event(Event(step=self.purge_step, file_version="brain.Event:2"))
                    start = SessionLog(status=SessionLog.START)
                    self.file_writer.add_event(Event(step=self.purge_step, session_log=start))
                    self.purge_step = None
            return self.file_writer

    return Writer(log_dir, purge_step=purge_step)


# torchvision


def pet_item(dataset: Any, index: int) -> tuple[Path, int]:
    """Return image file and label of an item of OxfordIIITPet.

    Works around: it publishes decoded images only and takes no `loader`, unlike Flowers102 and Imagenette. Checked with
    torchvision 0.26 and 0.29.
    """
    return Path(dataset._images[index]), int(dataset._labels[index])


# torchmetrics


@contextmanager
def light_torchmetrics() -> Iterator[None]:
    """Import torchmetrics in this context without `scipy.signal` and matplotlib; its plots import matplotlib when they are drawn.

    Works around: torchmetrics, which Lightning imports, imports both at its top, for audio metrics and for plots: 1.6 s. It only
    asks `scipy.signal` for `hamming`, to add it for another audio package. Checked with torchmetrics 1.9.0.
    """
    stand_ins: dict[str, dict[str, Any]] = {
        "scipy.signal": {"hamming": None},
        "matplotlib": {"colors": SimpleNamespace(Colormap=object)},
        "matplotlib.axes": {"Axes": _Axes},
        "matplotlib.pyplot": {
            "Figure": object,
            "style": SimpleNamespace(context=_plot_style),
            "__getattr__": _pyplot_attribute,
        },
    }
    if sys.modules.keys() & {"torchmetrics", *stand_ins}:
        yield
        return
    for name, attributes in stand_ins.items():
        module = sys.modules[name] = ModuleType(name)
        module.__dict__.update(attributes, __spec__=ModuleSpec(name, None))
        parent, _, child = name.rpartition(".")
        if parent in stand_ins:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


class _IsAxes(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, importlib.import_module("matplotlib.axes").Axes)


class _Axes(metaclass=_IsAxes):
    """Stand-in for matplotlib's Axes in annotations and `isinstance`."""


@contextmanager
def _plot_style(style: Any) -> Iterator[None]:
    with importlib.import_module("matplotlib.style").context(style):
        yield


def _pyplot_attribute(name: str) -> Any:
    if name.startswith("__"):  # `inspect` asks every module for its file
        raise AttributeError(name)
    return getattr(importlib.import_module("matplotlib.pyplot"), name)


# Lightning


def disable_signal_handlers(trainer: lightning.Trainer) -> None:
    """Keep a Trainer from handling signals; called before `fit` has registered its handlers, as in `Callback.setup`.

    Works around: Lightning's SIGTERM handler broadcasts to the other ranks from inside a step, which deadlocks with a collective
    that the step has begun, and with several ranks it broadcasts once more, and reads the result, at every batch. Neither can
    be switched off. Checked with lightning 2.6.6.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def validation_is_due(trainer: lightning.Trainer) -> bool:
    """Return whether a validation follows the training batch that has just ended.

    Works around: Lightning decides that from six arguments of the Trainer and publishes the result only when the validation
    begins. Checked with lightning 2.6.6.
    """
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def repeat_validation(trainer: lightning.Trainer) -> None:
    """Let a resumed fit begin with the whole validation that follows the step of its checkpoint.

    Works around: Lightning skips that validation unless its own checkpoint was written in the middle of it, and then continues
    at the batch that was reached. Checked with lightning 2.6.6.
    """
    from lightning.pytorch.loops.evaluation_loop import RestartStage

    loop = trainer.fit_loop.epoch_loop.val_loop
    loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
    loop.restarting = False  # from its first batch


def loop_progress(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the progress of epochs and of batches in a checkpoint: `total` and `current`, each with `ready` and `processed`.

    Works around: the layout of a checkpoint's `loops` is undocumented. Checked with lightning 2.6.6.
    """
    loops = checkpoint["loops"]["fit_loop"]
    return loops["epoch_progress"], loops["epoch_loop.batch_progress"]


# Hydra


class ConfigRepository(Protocol):
    """The config files that Hydra finds on its search path."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return a config by its path without suffix, such as `model/alexnet`."""
        ...


def hook_hydra(
    *,
    load_config: Callable[..., ConfigResult | None],
    load_configuration: Callable[..., DictConfig],
    compose_files: Callable[..., DictConfig],
    apply_overrides: Callable[..., None],
) -> None:
    """Wrap four steps of Hydra's composition. Each hook is called with the original function and then its arguments.

    Works around: Hydra has no public hook between the command line and the composed config. A second call replaces the hooks.
    Checked with hydra 1.3.8.

    Args:
        load_config: reads one file; called with a `ConfigRepository` and a config path.
        load_configuration: composes everything; called with the config loader, a config name, and overrides.
        compose_files: merges the files of a defaults list; called with the config loader, `defaults` and `repo`.
        apply_overrides: applies overrides; called with a list of them and the config.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository

    _wrap(ConfigRepository, "load_config", load_config)
    _wrap(ConfigLoaderImpl, "load_configuration", load_configuration)
    _wrap(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose_files)
    _wrap(ConfigLoaderImpl, "_apply_overrides_to_config", apply_overrides, static=True)


def _wrap(owner: type, name: str, hook: Callable[..., Any], *, static: bool = False) -> None:
    original = inspect.unwrap(getattr(owner, name))

    @functools.wraps(original)
    def call(*args: Any, **keywords: Any) -> Any:
        return hook(original, *args, **keywords)

    setattr(owner, name, staticmethod(call) if static else call)


def config_file(repository: Any, config_path: str) -> Path | None:
    """Return the file that a config repository reads a config from; None if it has none or it is no file.

    Works around: the repository publishes only the content and the folder. Checked with hydra 1.3.8.
    """
    from hydra.core.object_type import ObjectType

    source = repository._find_object_source(config_path, ObjectType.CONFIG)
    if source is None or source.scheme() != "file":
        return None
    return Path(source.path) / source._normalize_file_name(config_path)


def load_default(loader: Any, default: ResultDefault, repository: ConfigRepository) -> DictConfig:
    """Return what one entry of a defaults list merges into the config, below its package.

    Works around: a config loader publishes only the merged config. Checked with hydra 1.3.8.
    """
    config: DictConfig = loader._load_single_config(default=default, repo=repository).config
    return config


def job_error(result: JobReturn) -> Any:
    """Return the exception of a failed job.

    Works around: `JobReturn.return_value` raises it, and prints a line to stderr before. Checked with hydra 1.3.8.
    """
    return result._return_value


# Optuna


def reopen_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> optuna.Trial:
    """Return a running trial of a study that another process has asked for, so that values can be reported to it.

    Works around: Optuna hands out such a trial only in the process that calls `ask` or `optimize`. Checked with optuna 5.0.
    """
    import optuna

    return optuna.Trial(study, trial._trial_id)


# Ray


def local_ray_options(temp_dir: str) -> dict[str, str]:
    """Return arguments of `ray.init` that keep a local Ray on the loopback address, with its files in `temp_dir`.

    Works around: by default Ray listens on the machine's network address and leaves its logs in /tmp/ray. Checked with ray 2.60.
    """
    return {"_node_ip_address": "127.0.0.1", "_temp_dir": temp_dir}


# Hugging Face


@contextmanager
def offline_if_unreachable(timeout_s: float) -> Iterator[None]:
    """Let the client of the Hugging Face hub use only its cache if the hub does not answer.

    Works around: the client retries for 46 s, and reads the variable HF_HUB_OFFLINE only when it is imported. timm passes neither
    `local_files_only` nor `etag_timeout` on to it, and publishes no name to ask `try_to_load_from_cache` for. Checked with
    huggingface_hub 2.4 and timm 1.0.

    Args:
        timeout_s: time for an answer, in seconds.
    """
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout_s).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
