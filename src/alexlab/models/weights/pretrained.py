"""Pretrained weights from files, run folders, URLs and torchvision."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from torch import nn
from torchvision import models

from alexlab.errors import ConfigError
from alexlab.models.timm import TIMM, timm_weights
from alexlab.models.weights.downloads import download_torchvision, download_url
from alexlab.models.weights.files import read_weights
from alexlab.models.weights.state_dicts import State
from alexlab.records.layout import BEST

SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
FILES = "a checkpoint or run folder of alexlab, a state dict (.pth, .pt, .safetensors), its URL"


@dataclass(frozen=True)
class WeightSource:
    """Weights from a file, a URL or torchvision.

    Args:
        name: value of `model.weights`.
        state: tensors by name.
        classes: class names of the head, if the file records them.
        notes: remarks for the user on how the file was read.
    """

    name: str
    state: State
    classes: Sequence[str] | None = None
    notes: Sequence[str] = ()


def read_source(name: str, net: nn.Module) -> WeightSource:
    """Read weights without executing any code that the file refers to.

    Args:
        name: a file (.ckpt, .pth, .pt, .safetensors), a run folder (for its best checkpoint), the URL of a file, the name of
            torchvision weights, such as IMAGENET1K_V1, or `timm`. Downloads are cached and, except timm's, verified at each use.
        net: net whose type selects the weights of torchvision and timm.

    Raises:
        ConfigError: if the file or name does not exist, cannot be downloaded, or contains no weights.
    """
    path = Path(name)
    own = net.state_dict().keys()
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        scheme = urlsplit(name).scheme
        if scheme not in ("http", "https", "file"):
            raise ConfigError(f"model.weights must be {FILES}, with http:// or https://; got {name}")
        if scheme == "file":
            return _source(name, Path(url2pathname(urlsplit(name).path)), own)
        return _of_url(name, own)
    if path.is_dir():
        path = path / BEST
        if not path.is_file():
            raise ConfigError(f"model.weights={name} is a folder without {BEST}{hint_at_weights(Path(name))}")
    if path.is_file():
        return _source(name, path, own)
    if name == TIMM and hasattr(net, "timm_source"):
        state, note = timm_weights(*net.timm_source)  # type: ignore[misc]  # set by timm_net
        return WeightSource(f"timm's {net.timm_source[0]}", state, notes=[note])  # type: ignore[index]
    if path.suffix in SUFFIXES or "/" in name:
        raise ConfigError(f"model.weights must be {FILES}, or a name such as IMAGENET1K_V1; {name} does not exist")
    return _of_torchvision(name, net)


def hint_at_weights(folder: Path) -> str:
    """Return a hint at the weight files in a folder, for an error message; empty if there are none."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (*SUFFIXES, ".bin"))
    return f"; use a file in it, such as {folder / found[0]}" if found else ""


def _of_url(url: str, own: Collection[str]) -> WeightSource:
    path = download_url(url)
    try:
        return _source(url, path, own)
    except ConfigError as error:
        path.unlink(missing_ok=True)  # so that the next attempt downloads it again
        raise ConfigError(str(error).replace(str(path), url)) from error


def _of_torchvision(name: str, net: nn.Module) -> WeightSource:
    model = getattr(net, "torchvision_name", None)
    if model is None:
        raise ConfigError(
            f"model.weights must be {FILES}: torchvision has no weights for {type(net).__name__}; got {name!r}"
        )
    choices = models.get_model_weights(model)
    entry = choices.__members__.get(name.rsplit(".", 1)[-1])
    if entry is None:
        raise ConfigError(
            f"model.weights must be {FILES}, or the name of torchvision weights for {model}: "
            f"{', '.join(choices.__members__)}; got {name!r}"
        )
    return _source(name, download_torchvision(entry.url), ())


def _source(name: str, path: Path, own: Collection[str]) -> WeightSource:
    found = read_weights(path, own=own)
    if found.members:
        raise ConfigError(
            f"model.weights must be the weights of one network; {name} is an ensemble of {len(found.members)}"
        )
    return WeightSource(name, found.state, None if found.record is None else found.record["classes"], found.notes)
