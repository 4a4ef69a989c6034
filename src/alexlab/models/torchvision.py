"""Any classifier of torchvision, as a baseline beside the nets of this package."""

import difflib

from torch import nn
from torchvision import models


def torchvision_net(num_classes: int, *, name: str, in_channels: int = 3) -> nn.Module:
    """A classifier of torchvision.models with fresh weights.

    Args:
        num_classes: length of the logits.
        name: as torchvision.models.list_models has it: resnet18, mobilenet_v3_small, ...
        in_channels: channels of an image; other than 3, the first convolution is made anew.

    Raises:
        ValueError: when torchvision has no such classifier.
    """
    choices = models.list_models(module=models)
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=3) or choices
        raise ValueError(f"model.name must be a classifier of torchvision; got {name!r}, near it are {', '.join(near)}")
    # The auxiliary heads of these two make a training step return a tuple, and without init_weights they warn.
    plain = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    net: nn.Module = models.get_model(name, num_classes=num_classes, **plain)
    if in_channels != 3:
        _first_convolution(net, in_channels)
    net.torchvision_name = name  # type: ignore[assignment]  # whose weights fit
    return net


def _first_convolution(net: nn.Module, in_channels: int) -> None:
    name, conv = next((name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d))
    assert conv.groups == 1
    fresh = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, fresh)
