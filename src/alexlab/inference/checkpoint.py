"""A checkpoint is enough: the net, its classes, its preprocessing and its data's place come from the file alone."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import nn
from torchvision.models import AlexNet_Weights

from alexlab.cli.confinement import confined_data
from alexlab.cli.overrides import CONFIG_DIR
from alexlab.config import build
from alexlab.config.allowlist import check_targets
from alexlab.data.class_names import display_names, read_class_names
from alexlab.data.config import DataConfig
from alexlab.data.image_file import Decoding
from alexlab.errors import ConfigError
from alexlab.models.weights.files import WeightFile, read_weights
from alexlab.models.weights.pretrained import WeightSource, files_of_weights, match_weights
from alexlab.models.weights.state_dicts import ParameterLimit, State, load_state
from alexlab.runs.layout import BEST, LAST
from alexlab.training.preprocessing import Inference

log = logging.getLogger(__name__)

KINDS = "a run folder, a checkpoint, an exported .safetensors file, or a state dict of torchvision's alexnet"

SPARE = 100  # parameters that a net may make and drop while it is built: torchvision's for images that are not RGB
MAX_SIZE = 4096  # pixels of an image's side, in a config that may be a stranger's
NO_DATA = "(none)"  # the data folder of a file that knows of none


@dataclass(frozen=True)
class TrainedModel:
    """A trained net and all that is known of it.

    Args:
        path: of the file.
        config: of the run, plain data.
        choices: the option chosen in each config group.
        classes: folder names of the K classes, in the order of the logits.
        names: the names shown of them.
        best: the scores of its best validation, where there was one.
        inference: uint8 images to probabilities, in evaluation mode, on its device.
    """

    path: Path
    config: dict[str, Any]
    choices: Mapping[str, str]
    classes: list[str]
    names: list[str]
    best: Mapping[str, float]
    inference: Inference

    @property
    def run_dir(self) -> Path | None:
        """The run folder that the checkpoint lies in, or None."""
        folder = self.path.parent.parent
        return folder if self.path.parent.name == BEST.parent.name and (folder / "run.json").is_file() else None

    @property
    def decoding(self) -> Decoding:
        """The settings by which files become pixels."""
        return build.data(self.config).decoding

    def decoding_with(self, data: Mapping[str, Any]) -> "TrainedModel":
        """Return the same net with other settings of decoding, where a `data` node has some that are not null."""
        changes = {key: data[key] for key in ("max_megapixels", "intensity_range") if data.get(key) is not None}
        return replace(self, config={**self.config, "data": {**self.config["data"], **changes}})

    @property
    def description(self) -> str:
        """What it is, in a few words."""
        name = self.choices.get("model", self.config["model"]["_target_"].rsplit(".", 1)[-1])
        return f"{name}, {len(self.classes)} classes"


def load_checkpoint(name: str, *, class_names: str | None = None, device: str = "auto") -> TrainedModel:
    """Reads a trained net; nothing but tensors and plain data is unpickled.

    Args:
        name: a run folder (its best checkpoint), a checkpoint, an exported .safetensors file, or a state dict of torchvision's
            alexnet (.pth, .pt, .safetensors), whose classes are ImageNet's or the folders that `class_names` names.
        class_names: a JSON file with the names shown; None takes those of the checkpoint.
        device: `cpu`, `cuda`, or `auto`, a GPU where there is one.

    Raises:
        ConfigError: in one sentence.
    """
    path = _file(Path(name))
    given = None if class_names is None else read_class_names(class_names)
    found = read_weights(path)
    for note in found.notes:
        log.info("%s: %s", path, note)
    if found.record is None:
        return _of_torchvision(path, found, given, device)
    record = found.record
    inference = _inference(path, record, found.state)
    names = display_names(record["classes"], record["config"].get("class_names") if given is None else given)
    return TrainedModel(
        path,
        {**record["config"], "data": confined_data(record["config"]["data"])},
        record["choices"],
        record["classes"],
        names,
        record["best"],
        inference.eval().to(_device(device), torch.float32),
    )


def _inference(path: Path, record: dict[str, Any], state: State) -> Inference:
    """Return the net that a record describes, with the weights of its file; the record may be a stranger's."""
    config, classes = record["config"], record["classes"]
    try:
        check_targets(config)
        check_sizes(config)
        check_types(DataConfig, "data", config["data"])
        with ParameterLimit(len(state) + SPARE):
            inference = build.inference(config, len(classes))
        build.eval_view(config)
        size, channels = config["data"]["image_size"], config["data"]["channels"]
        inference.net.eval()(torch.empty(1, channels, size, size, device="meta"))
        if not torch.isfinite(torch.stack([inference.mean, inference.std])).all():
            raise ValueError("data.mean and data.std must be finite")
    except Exception as error:  # there is no end of what can be wrong with a config
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = " ".join(str(error).split())[:400]
        raise ConfigError(f"the config in {path} must describe a net and its preprocessing: {kind}{reason}") from error
    try:
        check_head(inference.net, state, classes)
        load_state(inference.net, state)
    except ValueError as error:
        raise ConfigError(f"the weights of {path} do not fit the net of its config: {error}") from error
    return inference


def check_sizes(config: Any) -> None:
    """Raise ValueError if the evaluation would make images that take gigabytes each."""
    waiting = [config["data"]["image_size"], config["augmentation"]["eval"]]
    for node in waiting:
        if isinstance(node, int | float) and not node <= MAX_SIZE:
            raise ValueError(f"images must be at most {MAX_SIZE} pixels wide; got {node}")
        if isinstance(node, dict | list):
            waiting.extend(node.values() if isinstance(node, dict) else node)


def check_types(target: Any, where: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError if an argument is not of the type that `target` declares."""
    for name, hint in get_type_hints(target).items():
        kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else [hint])]
        accepted = (*kinds, int) if float in kinds else tuple(kinds)
        if name in values and not isinstance(values[name], accepted):
            wanted = " | ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{where}.{name} must be a {wanted}; got {type(values[name]).__name__}")


def check_head(net: nn.Module, state: State, classes: Sequence[str]) -> None:
    """Raise ValueError if the last layer of the file is that of another number of classes."""
    own, found = ([value for value in tensors.values() if value.dim() > 1] for tensors in (net.state_dict(), state))
    if own and found and own[-1].shape[1:] == found[-1].shape[1:] and len(own[-1]) != len(found[-1]):
        raise ValueError(f"it names {len(classes)} classes, but its last layer has {len(found[-1])} outputs")


def _file(path: Path) -> Path:
    if path.is_dir():
        found = next((path / name for name in (BEST, LAST) if (path / name).is_file()), None)
        if found is None:
            raise ConfigError(f"ckpt must be {KINDS}; the folder {path} has no {BEST}{files_of_weights(path)}")
        return found
    if not path.is_file():
        raise ConfigError(f"ckpt must be {KINDS}; there is no {path}")
    return path


def _of_torchvision(path: Path, weights: WeightFile, names: dict[str, str] | None, device: str) -> TrainedModel:
    matrices = [tensor for tensor in weights.state.values() if tensor.dim() == 2]
    if not matrices:
        raise ConfigError(f"ckpt must be {KINDS}; {path} holds none of them")
    count = len(matrices[-1])
    if names is not None and len(names) == count:
        classes = sorted(names)
    elif count == len(AlexNet_Weights.IMAGENET1K_V1.meta["categories"]):
        classes = list(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
    else:
        raise ConfigError(
            f"{path} does not say its {count} classes; class_names=FILE.json must name the folder of each; "
            f"got {'none' if names is None else f'{len(names)} of them'}"
        )
    config = default_config("model=alexnet", "data=folder", f"data.root='{NO_DATA}'")
    inference = build.inference(config, count)
    found = match_weights(inference.net, WeightSource(str(path), weights.state), key="ckpt", head=(), classes=classes)
    if found.unmatched or found.unused:
        raise ConfigError(
            f"ckpt must be {KINDS}; in {path} these do not fit: {', '.join([*found.unmatched, *found.unused])}"
        )
    load_state(inference.net, found.matched)
    shown = display_names(classes, names)
    return TrainedModel(
        path, config, {"model": "alexnet"}, classes, shown, {}, inference.eval().to(_device(device), torch.float32)
    )


def default_config(*overrides: str) -> dict[str, Any]:
    """The config of `train.py` with overrides, plain data."""
    if GlobalHydra.instance().is_initialized():
        composed = compose("train", [*overrides])
    else:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            composed = compose("train", [*overrides])
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    return dict(plain)


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda needs a GPU; there is none. Take device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
