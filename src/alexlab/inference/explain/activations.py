"""Access to the layers of any network by forward hooks."""

from collections.abc import Callable, Iterable, Iterator
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
def call_on_layers(
    net: nn.Module, function: Callable[[str, Any, Any], Tensor | None], names: Iterable[str] | None = None
) -> Iterator[None]:
    """Call `function(name, input, output)` after each layer runs in this thread: other threads may share the network.

    Args:
        net: the network.
        function: is called with the name of the layer, its first positional input and its output, which are tensors unless the
            layer is a block with another signature. If it returns a tensor, that replaces the output.
        names: names of the layers; None for all that contain no other.
    """
    own = get_ident()
    if names is None:
        names = [name for name, layer in net.named_modules() if not list(layer.children())]

    def hook(name: str) -> Any:
        return lambda layer, inputs, output: (
            function(name, next(iter(inputs), None), output) if get_ident() == own else None
        )

    handles = [net.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_feature_layer(net: nn.Module, images: Tensor) -> str:
    """Return the name of the layer or block whose output is the last feature maps.

    It is the last one after the last convolution whose maps have the same height and width: for example its activation, or the
    block that joins it with other branches.

    Args:
        net: the network.
        images: normalized (N, C, H, W), of which the first is used.

    Raises:
        ConfigError: if the network has no convolution.
    """
    last, size = "", torch.Size()
    names = {name for name, _ in convolutions(net)}

    def record(name: str, _: Any, output: Any) -> None:
        nonlocal last, size
        if name in names:
            last, size = name, output.shape[2:]
        elif last and isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:] == size:
            last = name

    with torch.no_grad(), call_on_layers(net, record, [name for name, _ in net.named_modules()]):
        net(images[:1])
    if not last:
        raise ConfigError("Grad-CAM needs a network with convolutions; this one has none")
    return last


def head_layer(net: nn.Module, images: Tensor) -> str:
    """Return the name of the last linear or convolutional layer that runs; its input is the last hidden layer."""
    calls: list[str] = []
    with torch.no_grad(), call_on_layers(net, lambda name, _, output: calls.append(name)):
        net(images[:1])
    return [name for name in calls if isinstance(net.get_submodule(name), nn.Linear | nn.Conv2d)][-1]
