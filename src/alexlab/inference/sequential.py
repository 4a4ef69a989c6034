"""Sequential networks as lists of torch.nn layers, which any program can rebuild."""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alexlab.inference.explain.activations import call_on_layers
from alexlab.models.layers import ResponseNorm
from alexlab.training.preprocessing import expand_binary_logits


def sequential_layers(net: nn.Module, images: Tensor) -> list[list[Any]] | None:
    """Return a purely sequential network as a list of torch.nn class names and arguments; None for other networks.

    A network with a single logit gets a last layer that returns two.

    Args:
        net: the network, in eval mode.
        images: normalized (N, C, H, W), for which the list must compute the same logits (N, K) as the network.
    """
    layers: list[list[Any]] = []
    output_dims: list[int] = []

    def record(name: str, layer_input: Tensor, output: Tensor) -> None:
        layer = net.get_submodule(name)
        if output_dims and output_dims[-1] == 4 and layer_input.ndim == 2:
            layers.append(["Flatten", {}])
        output_dims.append(output.ndim)
        kind = _torch_class(layer)
        layers.append([kind.__name__, _arguments(layer, kind)])

    with torch.inference_mode():
        try:
            with call_on_layers(net, record):
                outputs = net(images)
        except TypeError:  # of `_torch_class`
            return None
        expected = expand_binary_logits(outputs)
        if output_dims and output_dims[-1] == 4:
            layers.append(["Flatten", {}])
        if expected is not outputs:
            layers.append(["ZeroPad1d", {"padding": [1, 0]}])
        try:
            rebuilt = build_sequential(layers, net.state_dict().values())
            equal = torch.equal(rebuilt.to(images.device)(images), expected)
        except (AttributeError, RuntimeError, TypeError, ValueError):  # not sequential
            return None
    return layers if equal else None


def build_sequential(layers: Sequence[Sequence[Any]], tensors: Iterable[Tensor]) -> nn.Sequential:
    """Return the network that a list from `sequential_layers` describes.

    Args:
        layers: class names and arguments of the layers.
        tensors: values of its state dict, in order.
    """
    net = nn.Sequential(*(getattr(nn, kind)(**arguments) for kind, arguments in layers)).eval()
    net.load_state_dict(dict(zip(net.state_dict(), tensors, strict=True)))
    return net


def _torch_class(layer: nn.Module) -> type[nn.Module]:
    """Return the class of a layer, or its first base class in torch.nn, such as LocalResponseNorm of ResponseNorm.

    Raises:
        TypeError: for a ResponseNorm of several groups, whose outputs for small activations are those of a single one.
    """
    if isinstance(layer, ResponseNorm) and layer.groups > 1:
        raise TypeError("torch.nn has no local response normalization of groups")
    return next(kind for kind in type(layer).__mro__ if getattr(nn, kind.__name__, None) is kind)


def _arguments(layer: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """Return the arguments of a torch.nn layer that are not defaults."""
    arguments = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in ("device", "dtype") or not hasattr(layer, name):
            continue
        value = getattr(layer, name)
        if name == "bias":
            value = value is not None
        elif isinstance(value, tuple):
            value = value[0] if len(set(value)) == 1 else list(value)
        if value != parameter.default:
            arguments[name] = value
    return arguments
