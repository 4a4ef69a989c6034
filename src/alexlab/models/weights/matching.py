"""Matching of pretrained weights to a net, by name, order and size."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alexlab.errors import ConfigError
from alexlab.models.weights.pretrained import WeightSource
from alexlab.models.weights.state_dicts import State


@dataclass(frozen=True)
class MatchedWeights:
    """Tensors of a source that fit a net, and what did not fit.

    Args:
        source: name of the source.
        matched: tensors for the net's state dict.
        sliced: layers that use only the first channels of the source.
        unmatched: tensors of the net that keep their initial values, with the reason for each.
        unused: unused tensors of the source.
        notes: notes of the source.
    """

    source: str
    matched: State = field(default_factory=dict)
    sliced: list[str] = field(default_factory=list)
    unmatched: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    notes: Sequence[str] = ()

    def load_into(self, net: nn.Module) -> None:
        """Copy the matched tensors into the net."""
        net.load_state_dict(self.matched, strict=False)

    def lines(self) -> Iterator[str]:
        """Yield a report for the log, which lists everything that did not fit."""
        yield f"{len(self.matched)} tensors from {self.source}"
        yield from self.notes
        if self.sliced:
            yield f"using the first channels of wider layers: {', '.join(self.sliced)}"
        for reason in dict.fromkeys(self.unmatched.values()):
            names = ", ".join(name for name, why in self.unmatched.items() if why == reason)
            yield f"randomly initialized, {reason}: {names}"
        if self.unused:
            yield f"not used: {', '.join(self.unused)}"


def match_weights(
    net: nn.Module, source: WeightSource, *, head: Collection[str], classes: Sequence[str], key: str = "model.weights"
) -> MatchedWeights:
    """Match the tensors of a source to a net.

    Layers are matched by name or, if the source uses other names, by their order among the convolutions, norms or linear
    layers (the last linear layers always match each other). For another number of colour channels, the first kernels are
    summed over the colours, or a third of a grey kernel is used for each colour. A narrower net uses the first channels of
    each layer (of each group, if it is grouped) and the weights that connect them, in nets that are a chain of layers
    (AlexNet, VGG and NiN); other nets only use layers of equal size.

    Args:
        net: net on any device, including the meta device.
        source: weights to match.
        head: names of the parameters whose shape depends on the number of classes; not matched if the classes differ.
        classes: class names of the data.
        key: config key of the source, for error messages.

    Raises:
        ConfigError: if no convolution kernel or linear weight fits.
    """
    own = net.state_dict()
    pairs = _paired(own, source.state)
    values = _sliced(own, source.state, pairs)
    head_reason = _head_mismatch(own, source, pairs, head, classes)
    result = MatchedWeights(source.name, notes=source.notes)
    for name, target in own.items():
        value = values.get(name)
        if name not in pairs:
            result.unmatched[name] = "not in the file"
        elif name in head and head_reason:
            result.unmatched[name] = head_reason
        elif value is None:
            result.unmatched[name] = "another size in the file"
        else:
            result.matched[name] = value
            theirs = source.state[pairs[name]]
            if target.dim() > 1 and theirs.shape != target.shape:
                result.sliced.append(f"{name.removesuffix('.weight')} ({_size(theirs)} -> {_size(target)})")
    used = {pairs[name] for name in result.matched}
    result.unused.extend(name for name in source.state if name not in used)
    if not any(own[name].dim() > 1 for name in result.matched):
        raise ConfigError(
            f"{key}={source.name} does not fit the net in any layer: the net begins with "
            f"{_first_layer(own)}, the file with {_first_layer(source.state)}"
        )
    return result


def _head_mismatch(
    own: State, source: WeightSource, pairs: dict[str, str], head: Collection[str], classes: Sequence[str]
) -> str:
    """Return the reason why the head does not match, or an empty string."""
    sizes = {(len(own[key]), len(source.state[pairs[key]])) for key in head if key in pairs}
    for ours, theirs in sizes:
        if ours != theirs:
            return f"the head has {ours} outputs instead of {theirs}"
    if source.classes is not None and list(source.classes) != list(classes):
        return "the head has other classes"
    return ""


def _layers(state: State) -> tuple[list[str], list[str], list[str]]:
    """Return the names of the convolutions, linear layers and norms, each in order."""
    found: dict[int, list[str]] = {4: [], 2: [], 1: []}
    for key, value in state.items():
        if key.endswith(".weight") and value.dim() in found:
            found[value.dim()].append(key.removesuffix(".weight"))
    return found[4], found[2], found[1]


def _paired(own: State, other: State) -> dict[str, str]:
    """Return the source's name for each tensor of the net that has one."""
    same = {key: key for key in own if key in other}
    if any(own[key].dim() > 1 for key in same):
        return same
    names: dict[str, str] = {}
    (kernels, linear, norms), (their_kernels, their_linear, their_norms) = _layers(own), _layers(other)
    for ours, theirs in ((kernels, their_kernels), (norms, their_norms)):
        if len(ours) == len(theirs):
            names |= dict(zip(ours, theirs, strict=True))
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
    """Return the matching part of the source for each tensor of the net; None if it does not fit.

    The channels that a layer keeps determine the inputs of the next one, as long as the net is a chain of layers.
    """
    chained = _is_chain(own) and _is_chain(other)
    following = _next_groups(other)
    first = next(iter(_layers(own)[0]), None)
    values: dict[str, Tensor | None] = {}
    layer, rows, num_rows = "", None, 0  # last layer, the source channels that it keeps, their total
    for key, target in own.items():
        theirs = other.get(pairs.get(key, ""))
        if target.dim() > 1:
            inputs: list[int] | None = rows if chained else None
            layer, rows, groups = key.rpartition(".")[0], None, (1, 1)
            if theirs is not None:
                if layer == first:
                    theirs = _convert_colours(theirs, target.shape[1])
                    inputs = list(range(theirs.shape[1]))
                elif inputs is not None:
                    inputs, groups = _inputs_of(inputs, num_rows, target, theirs)
                num_rows = len(theirs)
                theirs, rows = _slice(target.shape, theirs, inputs, groups, following.get(pairs[key], 1))
            values[key] = theirs
        elif theirs is None or (rows is None and key.startswith(f"{layer}.")):
            values[key] = None
        elif rows is not None and target.dim() == 1 and (len(target), len(theirs)) == (len(rows), num_rows):
            values[key] = theirs[rows]
        else:
            values[key] = theirs if theirs.shape == target.shape else None
    return values


def _inputs_of(
    rows: list[int], num_rows: int, target: Tensor, theirs: Tensor
) -> tuple[list[int] | None, tuple[int, int]]:
    """Return the source's indices of a layer's inputs, and the number of groups of both layers."""
    (width, their_width), (count, their_rows) = (target.shape[1], theirs.shape[1]), (len(rows), num_rows)
    if target.dim() == 2:
        # After flattening, each channel of the last convolution has a column per cell.
        cells = width // count
        fits = (width, their_width) == (cells * count, cells * their_rows)
        return ([row * cells + cell for row in rows for cell in range(cells)] if fits else None), (1, 1)
    # Does not hold after a layer that only one of the nets has.
    fits = count % width == 0 and their_rows % their_width == 0
    return (rows if fits else None), (max(1, count // width), max(1, their_rows // their_width))


def _slice(
    shape: torch.Size, theirs: Tensor, inputs: list[int] | None, groups: tuple[int, int], following: int
) -> tuple[Tensor | None, list[int] | None]:
    """Return the part of a weight that a narrower layer uses, and the indices of its rows in the source."""
    if theirs.dim() != len(shape):  # another kind of layer with the same name
        return None, None
    (count, width), (total, whole) = shape[:2], theirs.shape[:2]
    if shape == theirs.shape and (inputs is None or inputs == list(range(len(inputs)))):
        return theirs, list(range(total))
    towers = max(groups[1], following)
    if inputs is None or count > total or shape[2:] != theirs.shape[2:] or count % towers:
        return None, None
    rows = [tower * (total // towers) + row for tower in range(towers) for row in range(count // towers)]
    row = torch.tensor(rows)[:, None]
    own_group = torch.arange(count)[:, None] * groups[0] // count
    columns = torch.tensor(inputs)[own_group * width + torch.arange(width)] - row * groups[1] // total * whole
    if columns.min() < 0 or columns.max() >= whole:  # the source does not have this connection
        return None, None
    return theirs[row, columns], rows


def _convert_colours(kernel: Tensor, channels: int) -> Tensor:
    """Convert the first kernel to another number of colour channels, with the same output for grey images."""
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    if kernel.shape[1] == 1:
        return (kernel / channels).expand(-1, channels, *kernel.shape[2:])
    return kernel


def _is_chain(state: State) -> bool:
    """Return whether each layer can take all outputs of the previous one, grouped or not."""
    kernels, linear, _ = _layers(state)
    sizes = [tuple(state[f"{layer}.weight"].shape[:2]) for layer in kernels]
    convolutions = all(out % width == 0 for (out, _), (_, width) in itertools.pairwise(sizes))
    matrices = [tuple(state[f"{layer}.weight"].shape) for layer in linear]
    return convolutions and all(out == width for (out, _), (_, width) in itertools.pairwise(matrices))


def _next_groups(state: State) -> dict[str, int]:
    """Return, for each convolution, the number of groups of the next one."""
    keys = [f"{layer}.weight" for layer in _layers(state)[0]]
    return {key: len(state[key]) // state[after].shape[1] for key, after in itertools.pairwise(keys)}


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _first_layer(state: State) -> str:
    key = next((key for key, value in state.items() if value.dim() > 1), None)
    return f"{key} ({_size(state[key])})" if key else "no layer"
