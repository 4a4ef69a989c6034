"""Measurements of a net on a few images: the signal in each layer, and how far the weights have moved."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alexlab.training.module import Classifier
from alexlab.training.preprocessing import expand_binary_logits

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
MAX_SAMPLES = 4096  # elements of each weight that WeightSamples keeps


@dataclass(frozen=True)
class LayerSignal:
    """Output of a layer for some images.

    Args:
        name: name of the layer, or of its input.
        spread: standard deviation over the images, relative to the size of the output; both are root mean squares.
        dead: fraction of the channels or units that are 0 for every image.
    """

    name: str
    spread: float
    dead: float


@dataclass(frozen=True)
class Signal:
    """The signal of some images on its way through a net.

    Args:
        images: spread of the normalized images, as in `LayerSignal`.
        logits: standard deviation of the logits over the images, root mean square over the classes.
        size: root mean square of the logits.
        layers: outputs of the layers without children, in the order of the forward pass.
    """

    images: float
    logits: float
    size: float
    layers: tuple[LayerSignal, ...]

    def first_dead(self) -> str | None:
        """Return the first layer whose units are 0 for all images."""
        return next((layer.name for layer in self.layers if layer.dead == 1), None)

    def first_without_spread(self, threshold: float) -> str | None:
        """Return the first layer whose output differs between images by less than `threshold` of its size."""
        return next((layer.name for layer in self.layers if layer.spread < threshold), None)


@torch.no_grad()
def measure_signal(module: Classifier, images: Tensor) -> Signal:
    """Measure the signal of images in float32, without dropout, and with the batch norms of training.

    The hooks, the modes and the statistics of batch norms belong to a copy of the net that shares its parameters, so nothing
    of a training changes, no random number is drawn, and compiled code is not run.

    Args:
        module: module on the device of the images.
        images: uint8 images (N, C, H, W), N at least 2.
    """
    net = copy.deepcopy(module.net, {id(parameter): parameter for parameter in module.net.parameters()})
    for layer in net.modules():
        # Without running statistics a norm in eval mode normalizes by the batch, and does not synchronize ranks.
        if isinstance(layer, BATCH_NORMS) and layer.training:
            layer.running_mean = layer.running_var = None
    net.eval()
    found: list[LayerSignal] = []
    names = {layer: name for name, layer in net.named_modules()}

    def record(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(layer, nn.Conv2d | nn.Linear) and _is_batch(inputs[0], len(images)):
            dead = _dead(inputs[0])  # of activations that are functions, not layers
            found.append(LayerSignal(f"the input of {names[layer]}", 1.0, dead))
        if _is_batch(output, len(images)):
            found.append(LayerSignal(names[layer], _spread(output), _dead(output)))

    for layer in net.modules():
        if not list(layer.children()):
            layer.register_forward_hook(record)
    with torch.autocast(images.device.type, enabled=False):
        normalized = module.normalize(images).to(module.dtype)
        logits = expand_binary_logits(net(normalized)).float()
    size = logits.square().mean().sqrt().item()
    return Signal(_spread(normalized), logits.std(0).square().mean().sqrt().item(), size, tuple(found))


def _is_batch(value: Any, num_images: int) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2 and len(value) == num_images


def _spread(output: Tensor) -> float:
    values = output.float().flatten(1)
    size = values.square().mean().sqrt().item()
    return values.std(0).square().mean().sqrt().item() / size if size else 0.0


def _dead(output: Tensor) -> float:
    units = output.movedim(-1, 0) if output.ndim == 3 else output.movedim(1, 0)  # tokens (N, T, C)
    return (units == 0).flatten(1).all(1).float().mean().item()


class WeightSamples:
    """Evenly spaced elements of the trainable weights of a net, to measure how far they move.

    Args:
        net: the net; biases and norms are left out.
    """

    def __init__(self, net: nn.Module) -> None:
        self.weights = {
            name: parameter
            for name, parameter in net.named_parameters()
            if parameter.requires_grad and parameter.ndim > 1
        }
        self.start = {name: _sample(parameter) for name, parameter in self.weights.items()}

    def change_per_step(self, num_steps: int) -> float:
        """Return the largest distance of a weight from its start, relative to its norm there and divided by the steps."""
        changes = [
            ((_sample(weight) - self.start[name]).norm() / self.start[name].norm()).item() / num_steps
            for name, weight in self.weights.items()
            if self.start[name].any()  # a weight that starts at 0 has no relative change
        ]
        return max(changes, default=float("inf"))

    def growth(self) -> tuple[float, str]:
        """Return the largest growth of a weight and its name.

        The root mean square is divided by that at the start, or by 1 / sqrt(fan in) if this is larger: weights that start
        close to 0, as N(0, 1e-4), have to grow.
        """
        sizes = {
            name: (_size(_sample(weight)) / max(_size(self.start[name]), weight[0].numel() ** -0.5), name)
            for name, weight in self.weights.items()
        }
        return max(sizes.values(), default=(0.0, ""))


@torch.no_grad()
def _sample(parameter: Tensor) -> Tensor:
    return parameter.detach().reshape(-1)[:: -(-parameter.numel() // MAX_SAMPLES)].float().clone()


def _size(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
