"""Weights from elsewhere: where they come from, how they are matched to a net, and what did not fit."""

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models

from alexlab.errors import ConfigError
from alexlab.load import load_file
from alexlab.runs import BEST, CHECKPOINT_KEY

SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
FILES = "a checkpoint or run folder of alexlab, a state dict (.pth, .pt, .safetensors), its URL"

State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Weights as they were found.

    Args:
        name: what was asked for.
        state: tensors by name.
        classes: names of the classes that the head tells apart, where the file says them.
    """

    name: str
    state: State
    classes: Sequence[str] | None = None


@dataclass(frozen=True)
class Fit:
    """What of a source fits a net.

    Args:
        source: its name.
        taken: tensors for the net's state dict.
        sliced: layers of which only the first channels were taken.
        fresh: names in the net that keep their initial weights, each with the reason.
        unused: names in the source that nothing took.
    """

    source: str
    taken: State = field(default_factory=dict)
    sliced: list[str] = field(default_factory=list)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def load_into(self, net: nn.Module) -> None:
        """Copies the tensors into the net."""
        net.load_state_dict(self.taken, strict=False)

    def lines(self) -> Iterator[str]:
        """What a person must know, a line each; nothing that did not fit is left out."""
        yield f"{len(self.taken)} tensors from {self.source}"
        if self.sliced:
            yield f"the first channels of wider layers: {', '.join(self.sliced)}"
        for reason in dict.fromkeys(self.fresh.values()):
            yield f"{reason}: {', '.join(name for name, why in self.fresh.items() if why == reason)} start afresh"
        if self.unused:
            yield f"not used: {', '.join(self.unused)}"


def read_source(name: str, net: nn.Module) -> Source:
    """Reads weights; nothing but tensors and plain data is unpickled.

    Args:
        name: a file (.ckpt, .pth, .pt, .safetensors), a run folder (its best checkpoint), the URL of a file, or the name of
            weights of torchvision, such as IMAGENET1K_V1, which are downloaded once and checked by their hash.
        net: tells which weights of torchvision are meant.

    Raises:
        ConfigError: when there is no such file or name, it cannot be downloaded, or holds no weights.
    """
    path = Path(name)
    if re.match(r"[a-z]+://", name):
        return parsed(name, _downloaded(name))
    if path.is_dir():
        path = path / BEST
        if not path.is_file():
            raise ConfigError(f"model.weights={name} is a folder without {BEST}")
    if path.is_file():
        return parsed(name, load_file(path))
    if path.suffix in SUFFIXES or "/" in name:
        raise ConfigError(f"model.weights must be {FILES}, or a name such as IMAGENET1K_V1; there is no file {name}")
    return Source(name, _of_torchvision(name, net))


def _downloaded(url: str) -> Any:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    target = folder / url.rsplit("/", 1)[-1]
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target))
        except (URLError, OSError, ValueError) as error:
            raise _no_download(url, target, error) from error
    return load_file(target)


def _of_torchvision(name: str, net: nn.Module) -> State:
    model = getattr(net, "torchvision_name", None)
    if model is None:
        raise ConfigError(
            f"model.weights must be {FILES}: torchvision has no weights for {type(net).__name__}; got {name!r}"
        )
    choices = models.get_model_weights(model)
    entry = choices.__members__.get(name.rsplit(".", 1)[-1])
    if entry is None:
        raise ConfigError(
            f"model.weights must be {FILES}, or the name of weights of torchvision's {model}: "
            f"{', '.join(choices.__members__)}; got {name!r}"
        )
    try:
        state: State = dict(entry.get_state_dict(progress=True, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        target = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/", 1)[-1]
        raise _no_download(entry.url, target, error) from error
    return state


def _no_download(url: str, target: Path, error: Exception) -> ConfigError:
    return ConfigError(f"cannot download {url} ({error}); get it on another machine and put it at {target}")


def parsed(name: str, content: Any, key: str = "model.weights") -> Source:
    """Finds the state dict in what was read: our checkpoint, {"state_dict": ...}, {"model": ...}, or the dict itself.

    Args:
        name: of the file.
        content: what `load_file` gives.
        key: of the config that names it, for messages.

    Raises:
        ConfigError: when there are no tensors.
    """
    classes = None
    if isinstance(content, dict) and CHECKPOINT_KEY in content:
        classes = content[CHECKPOINT_KEY]["classes"]
        content = {key[4:]: value for key, value in content["state_dict"].items() if key.startswith("net.")}
    for place in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(place), dict):
            content = content[place]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{key}={name} must hold a state dict; it holds no tensors by name")
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod."):  # of DistributedDataParallel and torch.compile
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return Source(name, state, classes)


def fit(net: nn.Module, source: Source, *, head: Collection[str], classes: Sequence[str]) -> Fit:
    """Matches a source to a net, tensor by tensor.

    Layers are matched by their names; where the source uses other names, by their order among the layers of their kind
    (convolutions, norms, linear layers; of the linear ones the last with the last). A net of another number of colours takes
    the sum of the first kernels over the colours, or a third of a grey kernel for each colour. A narrower net takes the first
    channels of each layer, in each group of a grouped net, and the weights that connect them, wherever one layer feeds the
    next (the families of AlexNet, VGG and NiN); other nets take only layers of equal size.

    Args:
        net: on any device, also `meta`.
        source: the weights.
        head: names of the parameters that depend on the number of classes; they start afresh for other classes.
        classes: of the data.

    Raises:
        ConfigError: when not one kernel or matrix fits.
    """
    own = net.state_dict()
    pairs = _paired(own, source.state)
    values = _sliced(own, source.state, pairs)
    other_head = _other_head(own, source, pairs, head, classes)
    result = Fit(source.name)
    for key, wanted in own.items():
        value = values.get(key)
        if key not in pairs:
            result.fresh[key] = "not in the file"
        elif key in head and other_head:
            result.fresh[key] = other_head
        elif value is None:
            result.fresh[key] = "of another size in the file"
        else:
            result.taken[key] = value
            there = source.state[pairs[key]]
            if wanted.dim() > 1 and there.shape != wanted.shape:
                result.sliced.append(f"{key.removesuffix('.weight')} ({_size(there)} -> {_size(wanted)})")
    used = {pairs[key] for key in result.taken}
    result.unused.extend(key for key in source.state if key not in used)
    if not any(own[key].dim() > 1 for key in result.taken):
        raise ConfigError(
            f"model.weights={source.name} must fit the net; no layer of it does: the net begins with "
            f"{_beginning(own)}, the file with {_beginning(source.state)}"
        )
    return result


def _other_head(
    own: State, source: Source, pairs: dict[str, str], head: Collection[str], classes: Sequence[str]
) -> str:
    """Why the head cannot be kept, or nothing."""
    sizes = {(len(own[key]), len(source.state[pairs[key]])) for key in head if key in pairs}
    for here, there in sizes:
        if here != there:
            return f"the head, of {here} instead of {there} outputs"
    if source.classes is not None and list(source.classes) != list(classes):
        return "the head, of other classes"
    return ""


def _layers(state: State) -> tuple[list[str], list[str], list[str]]:
    """Names of the convolutions, the linear layers and the norms, each in their order."""
    found: dict[int, list[str]] = {4: [], 2: [], 1: []}
    for key, value in state.items():
        if key.endswith(".weight") and value.dim() in found:
            found[value.dim()].append(key.removesuffix(".weight"))
    return found[4], found[2], found[1]


def _paired(own: State, other: State) -> dict[str, str]:
    """The name in the source of each name in the net, as far as there is one."""
    same = {key: key for key in own if key in other}
    if any(own[key].dim() > 1 for key in same):
        return same
    names: dict[str, str] = {}
    (kernels, linear, norms), (their_kernels, their_linear, their_norms) = _layers(own), _layers(other)
    for here, there in ((kernels, their_kernels), (norms, their_norms)):
        if len(here) == len(there):
            names |= dict(zip(here, there, strict=True))
    if linear and their_linear:
        names |= dict(zip(linear[:-1], their_linear[:-1], strict=False))
        names[linear[-1]] = their_linear[-1]
    pairs = {}
    for key in own:
        layer, _, leaf = key.rpartition(".")
        if layer in names and f"{names[layer]}.{leaf}" in other:
            pairs[key] = f"{names[layer]}.{leaf}"
    return pairs


def _sliced(own: State, other: State, pairs: dict[str, str]) -> dict[str, Tensor | None]:
    """What each tensor of the net takes from its counterpart; None where it does not fit.

    The channels that a layer keeps are known to the next one, as long as each layer feeds the next.
    """
    chained = _feeds_the_next(own) and _feeds_the_next(other)
    following = _following_groups(other)
    first = next(iter(_layers(own)[0]), None)
    values: dict[str, Tensor | None] = {}
    layer, rows, num_rows = "", None, 0  # the last layer, which of its source's channels it keeps, and of how many
    for key, wanted in own.items():
        there = other.get(pairs.get(key, ""))
        if wanted.dim() > 1:
            inputs: list[int] | None = rows if chained else None
            layer, rows, groups = key.rpartition(".")[0], None, (1, 1)
            if there is not None:
                if layer == first:
                    there = _recoloured(there, wanted.shape[1])
                    inputs = list(range(there.shape[1]))
                elif inputs is not None:
                    inputs, groups = _feeding(inputs, num_rows, wanted, there)
                num_rows = len(there)
                there, rows = _part(wanted.shape, there, inputs, groups, following.get(pairs[key], 1))
            values[key] = there
        elif there is None or (rows is None and key.startswith(f"{layer}.")):
            values[key] = None
        elif rows is not None and wanted.dim() == 1 and (len(wanted), len(there)) == (len(rows), num_rows):
            values[key] = there[rows]
        else:
            values[key] = there if there.shape == wanted.shape else None
    return values


def _feeding(rows: list[int], num_rows: int, wanted: Tensor, there: Tensor) -> tuple[list[int] | None, tuple[int, int]]:
    """The source's inputs that a layer's own inputs are, and in how many groups they are divided here and there."""
    (width, their_width), (count, their_count) = (wanted.shape[1], there.shape[1]), (len(rows), num_rows)
    if wanted.dim() == 2:
        # Each channel of the last convolution is so many columns, one for each cell of the grid.
        cells = width // count
        fits = (width, their_width) == (cells * count, cells * their_count)
        return ([row * cells + cell for row in rows for cell in range(cells)] if fits else None), (1, 1)
    # Where a layer is left out, here or there, the one behind it is fed by another one.
    fits = count % width == 0 and their_count % their_width == 0
    return (rows if fits else None), (max(1, count // width), max(1, their_count // their_width))


def _part(
    shape: torch.Size, there: Tensor, inputs: list[int] | None, groups: tuple[int, int], following: int
) -> tuple[Tensor | None, list[int] | None]:
    """The rows and columns of a weight that a narrower layer takes, and which rows those are."""
    (count, width), (total, whole) = shape[:2], there.shape[:2]
    if shape == there.shape and (inputs is None or inputs == list(range(len(inputs)))):
        return there, list(range(total))
    towers = max(groups[1], following)
    if inputs is None or count > total or shape[2:] != there.shape[2:] or count % towers:
        return None, None
    rows = [tower * (total // towers) + row for tower in range(towers) for row in range(count // towers)]
    row = torch.tensor(rows)[:, None]
    own_group = torch.arange(count)[:, None] * groups[0] // count
    columns = torch.tensor(inputs)[own_group * width + torch.arange(width)] - row * groups[1] // total * whole
    if columns.min() < 0 or columns.max() >= whole:  # a connection that the source does not have
        return None, None
    return there[row, columns], rows


def _recoloured(kernel: Tensor, channels: int) -> Tensor:
    """A first kernel for another number of colours that gives the same for grey pictures."""
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    if kernel.shape[1] == 1:
        return (kernel / channels).expand(-1, channels, *kernel.shape[2:])
    return kernel


def _feeds_the_next(state: State) -> bool:
    """Whether each layer could take all outputs of the one before, in groups or in one."""
    kernels, linear, _ = _layers(state)
    sizes = [tuple(state[f"{layer}.weight"].shape[:2]) for layer in kernels]
    convolutions = all(out % width == 0 for (out, _), (_, width) in itertools.pairwise(sizes))
    matrices = [tuple(state[f"{layer}.weight"].shape) for layer in linear]
    return convolutions and all(out == width for (out, _), (_, width) in itertools.pairwise(matrices))


def _following_groups(state: State) -> dict[str, int]:
    """For each convolution, in how many groups the next one divides its outputs."""
    keys = [f"{layer}.weight" for layer in _layers(state)[0]]
    return {key: len(state[key]) // state[after].shape[1] for key, after in itertools.pairwise(keys)}


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _beginning(state: State) -> str:
    key = next((key for key, value in state.items() if value.dim() > 1), None)
    return f"{key} ({_size(state[key])})" if key else "no layer"
