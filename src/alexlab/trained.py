"""A checkpoint is enough: the net, its classes, its preprocessing and its data's place come from the file alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torchvision.models import AlexNet_Weights

from alexlab import build
from alexlab.class_names import read_class_names, shown_names
from alexlab.errors import ConfigError
from alexlab.inference import Inference
from alexlab.load import load_file
from alexlab.models.weights import Source, fit, parsed
from alexlab.overrides import CONFIG_DIR
from alexlab.runs import BEST, CHECKPOINT_KEY, LAST
from alexlab.trust import check_targets

KINDS = "a run folder, a checkpoint, an exported .safetensors file, or a state dict of torchvision's alexnet"

NO_DATA = "(none)"  # the data folder of a file that knows of none


@dataclass(frozen=True)
class Trained:
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
    def about(self) -> str:
        """What it is, in a few words."""
        name = self.choices.get("model", self.config["model"]["_target_"].rsplit(".", 1)[-1])
        return f"{name}, {len(self.classes)} classes"


def load_trained(name: str, *, class_names: str | None = None, device: str = "auto") -> Trained:
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
    content = load_file(path)
    record, state = _record(path, content), parsed(str(path), content, "ckpt")
    if record is None:
        return _of_torchvision(path, state, given, device)
    check_targets(record["config"])  # it may be a stranger's
    classes = list(record["classes"])
    inference = build.inference(record["config"], len(classes))
    try:
        inference.net.load_state_dict(state.state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"the weights of {path} do not fit the net of its config: {reason}") from error
    names = shown_names(classes, record["config"].get("class_names") if given is None else given)
    return Trained(
        path,
        record["config"],
        record["choices"],
        classes,
        names,
        record.get("best") or {},
        inference.eval().to(_device(device), torch.float32),
    )


def _file(path: Path) -> Path:
    if path.is_dir():
        found = next((path / name for name in (BEST, LAST) if (path / name).is_file()), None)
        if found is None:
            raise ConfigError(f"ckpt must be {KINDS}; the folder {path} has no {BEST}")
        return found
    if not path.is_file():
        raise ConfigError(f"ckpt must be {KINDS}; there is no {path}")
    return path


def _record(path: Path, content: Any) -> dict[str, Any] | None:
    """What a checkpoint says of its run; None of a file that says nothing."""
    if isinstance(content, dict) and CHECKPOINT_KEY in content:
        record: dict[str, Any] = content[CHECKPOINT_KEY]
        return record
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(CHECKPOINT_KEY)
        return None if text is None else dict(json.loads(text))
    return None


def _of_torchvision(path: Path, source: Source, names: dict[str, str] | None, device: str) -> Trained:
    matrices = [tensor for tensor in source.state.values() if tensor.dim() == 2]
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
    found = fit(inference.net, source, head=(), classes=classes)
    if found.fresh or found.unused:
        raise ConfigError(
            f"ckpt must be {KINDS}; in {path} these do not fit: {', '.join([*found.fresh, *found.unused])}"
        )
    inference.net.load_state_dict(found.taken, assign=True)
    shown = shown_names(classes, names)
    return Trained(
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
