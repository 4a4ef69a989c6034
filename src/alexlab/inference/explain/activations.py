"""Which layers of a net are looked at, whatever the net."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def convolutions(net: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """The convolutions of a net with their names, in the order of the modules."""
    return [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]


@contextmanager
def watched(net: nn.Module, see: Callable[[str, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Calls `see` with the name, the input and the output of each layer that has no layers inside, as it is run.

    What it returns, if anything, takes the place of the output.
    """

    def hook(name: str) -> Any:
        return lambda layer, inputs, output: see(name, inputs[0], output)

    handles = [
        layer.register_forward_hook(hook(name)) for name, layer in net.named_modules() if not list(layer.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_maps(net: nn.Module, images: Tensor) -> str:
    """The layer whose output is the last maps of a net: what comes after the last convolution, before the maps shrink.

    Args:
        net: the net.
        images: normalised, (N, C, H, W); one of them is enough.

    Raises:
        ValueError: when the net has no convolution.
    """
    kinds = {name for name, _ in convolutions(net)}
    run: list[tuple[str, torch.Size]] = []
    with torch.no_grad(), watched(net, lambda name, _, output: run.append((name, output.shape))):
        net(images[:1])
    places = [place for place, (name, _) in enumerate(run) if name in kinds]
    if not places:
        raise ValueError("the net has no convolution")
    found, size = run[places[-1]]
    for name, shape in run[places[-1] + 1 :]:
        if shape != size:
            break
        found = name
    return found


def head(net: nn.Module, images: Tensor) -> str:
    """The last layer with weights that is run: its input is the last hidden layer."""
    run: list[str] = []
    with torch.no_grad(), watched(net, lambda name, _, output: run.append(name)):
        net(images[:1])
    return [name for name in run if isinstance(net.get_submodule(name), nn.Linear | nn.Conv2d)][-1]
