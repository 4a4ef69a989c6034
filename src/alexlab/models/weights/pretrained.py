"""Weights from elsewhere: where they come from, how they are matched to a net, and what did not fit."""

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
from torch import Tensor, nn
from torchvision import models

from alexlab.errors import ConfigError
from alexlab.models.weights.downloads import download_torchvision, download_url
from alexlab.models.weights.files import read_weights
from alexlab.models.weights.state_dicts import State
from alexlab.runs.layout import BEST

SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
FILES = "a checkpoint or run folder of alexlab, a state dict (.pth, .pt, .safetensors), its URL"


@dataclass(frozen=True)
class WeightSource:
    """Weights as they were found.

    Args:
        name: what was asked for.
        state: tensors by name.
        classes: names of the classes that the head tells apart, where the file says them.
        notes: what a person should know of how the file was read.
    """

    name: str
    state: State
    classes: Sequence[str] | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class MatchedWeights:
    """What of a source fits a net.

    Args:
        source: its name.
        matched: tensors for the net's state dict.
        sliced: layers of which only the first channels were taken.
        unmatched: names in the net that keep their initial weights, each with the reason.
        unused: names in the source that nothing took.
        notes: of the source.
    """

    source: str
    matched: State = field(default_factory=dict)
    sliced: list[str] = field(default_factory=list)
    unmatched: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    notes: Sequence[str] = ()

    def load_into(self, net: nn.Module) -> None:
        """Copies the tensors into the net."""
        net.load_state_dict(self.matched, strict=False)

    def lines(self) -> Iterator[str]:
        """What a person must know, a line each; nothing that did not fit is left out."""
        yield f"{len(self.matched)} tensors from {self.source}"
        yield from self.notes
        if self.sliced:
            yield f"the first channels of wider layers: {', '.join(self.sliced)}"
        for reason in dict.fromkeys(self.unmatched.values()):
            yield f"{reason}: {', '.join(name for name, why in self.unmatched.items() if why == reason)} start afresh"
        if self.unused:
            yield f"not used: {', '.join(self.unused)}"


def read_source(name: str, net: nn.Module) -> WeightSource:
    """Read weights without running any code that the file names.

    Args:
        name: a file (.ckpt, .pth, .pt, .safetensors), a run folder (its best checkpoint), the URL of a file, or the name of
            weights of torchvision, such as IMAGENET1K_V1. Downloads are kept, and verified each time that they are read.
        net: tells which weights of torchvision are meant.

    Raises:
        ConfigError: if there is no such file or name, it cannot be downloaded, or it holds no weights.
    """
    path = Path(name)
    own = net.state_dict().keys()
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        scheme = urlsplit(name).scheme
        if scheme not in ("http", "https", "file"):
            raise ConfigError(f"model.weights must be {FILES}, which begins with http:// or https://; got {name}")
        if scheme == "file":
            return _source(name, Path(url2pathname(urlsplit(name).path)), own)
        return _of_url(name, own)
    if path.is_dir():
        path = path / BEST
        if not path.is_file():
            raise ConfigError(f"model.weights={name} is a folder without {BEST}{files_of_weights(Path(name))}")
    if path.is_file():
        return _source(name, path, own)
    if path.suffix in SUFFIXES or "/" in name:
        raise ConfigError(f"model.weights must be {FILES}, or a name such as IMAGENET1K_V1; there is no file {name}")
    return _of_torchvision(name, net)


def files_of_weights(folder: Path) -> str:
    """Return a hint at the files of weights in a folder, for a message; nothing if there are none."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (*SUFFIXES, ".bin"))
    return f"; name a file in it, such as {folder / found[0]}" if found else ""


def _of_url(url: str, own: Collection[str]) -> WeightSource:
    path = download_url(url)
    try:
        return _source(url, path, own)
    except ConfigError as error:
        path.unlink(missing_ok=True)  # the server may send something better next time
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
            f"model.weights must be {FILES}, or the name of weights of torchvision's {model}: "
            f"{', '.join(choices.__members__)}; got {name!r}"
        )
    return _source(name, download_torchvision(entry.url), ())


def _source(name: str, path: Path, own: Collection[str]) -> WeightSource:
    found = read_weights(path, own=own)
    return WeightSource(name, found.state, None if found.record is None else found.record["classes"], found.notes)


def match_weights(
    net: nn.Module, source: WeightSource, *, head: Collection[str], classes: Sequence[str], key: str = "model.weights"
) -> MatchedWeights:
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
        key: of the config that names the source, for messages.

    Raises:
        ConfigError: when not one kernel or matrix fits.
    """
    own = net.state_dict()
    pairs = _paired(own, source.state)
    values = _sliced(own, source.state, pairs)
    other_head = _other_head(own, source, pairs, head, classes)
    result = MatchedWeights(source.name, notes=source.notes)
    for name, wanted in own.items():
        value = values.get(name)
        if name not in pairs:
            result.unmatched[name] = "not in the file"
        elif name in head and other_head:
            result.unmatched[name] = other_head
        elif value is None:
            result.unmatched[name] = "of another size in the file"
        else:
            result.matched[name] = value
            there = source.state[pairs[name]]
            if wanted.dim() > 1 and there.shape != wanted.shape:
                result.sliced.append(f"{name.removesuffix('.weight')} ({_size(there)} -> {_size(wanted)})")
    used = {pairs[name] for name in result.matched}
    result.unused.extend(name for name in source.state if name not in used)
    if not any(own[name].dim() > 1 for name in result.matched):
        raise ConfigError(
            f"{key}={source.name} must fit the net; no layer of it does: the net begins with "
            f"{_beginning(own)}, the file with {_beginning(source.state)}"
        )
    return result


def _other_head(
    own: State, source: WeightSource, pairs: dict[str, str], head: Collection[str], classes: Sequence[str]
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
