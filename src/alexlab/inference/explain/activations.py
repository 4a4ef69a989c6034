"""Access to the layers of any network by forward hooks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from alexlab.errors import ConfigError


def convolutions(net: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Return the convolutions of a network with their names, in the order of its modules."""
    return [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]


@contextmanager
def call_on_layers(net: nn.Module, function: Callable[[str, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `function(name, input, output)` after each leaf layer runs in this thread: other threads may share the network.

    If it returns a tensor, that replaces the output.
    """
    own = get_ident()

    def hook(name: str) -> Any:
        return lambda layer, inputs, output: function(name, inputs[0], output) if get_ident() == own else None

    handles = [
        layer.register_forward_hook(hook(name)) for name, layer in net.named_modules() if not list(layer.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_feature_layer(net: nn.Module, images: Tensor) -> str:
    """Return the name of the layer whose output is the last feature maps.

    It is the last layer after the last convolution that keeps the size of its maps, for example its activation.

    Args:
        net: the network.
        images: normalized (N, C, H, W), of which the first is used.

    Raises:
        ConfigError: if the network has no convolution.
    """
    names = {name for name, _ in convolutions(net)}
    calls: list[tuple[str, torch.Size]] = []
    with torch.no_grad(), call_on_layers(net, lambda name, _, output: calls.append((name, output.shape))):
        net(images[:1])
    positions = [position for position, (name, _) in enumerate(calls) if name in names]
    if not positions:
        raise ConfigError("Grad-CAM needs a network with convolutions; this one has none")
    last, size = calls[positions[-1]]
    for name, shape in calls[positions[-1] + 1 :]:
        if shape != size:
            break
        last = name
    return last


def head_layer(net: nn.Module, images: Tensor) -> str:
    """Return the name of the last linear or convolutional layer that runs; its input is the last hidden layer."""
    calls: list[str] = []
    with torch.no_grad(), call_on_layers(net, lambda name, _, output: calls.append(name)):
        net(images[:1])
    return [name for name in calls if isinstance(net.get_submodule(name), nn.Linear | nn.Conv2d)][-1]
