"""Classifiers of torchvision, as baselines."""

import difflib

from torch import nn
from torchvision import models


def torchvision_net(num_classes: int, *, name: str, in_channels: int = 3) -> nn.Module:
    """Return a randomly initialized classifier of torchvision.models.

    Args:
        num_classes: number of classes K.
        name: name in torchvision.models.list_models: resnet18, mobilenet_v3_small, ...
        in_channels: channels of an image; if it is not 3, the first convolution is a new one with PyTorch's initial weights.

    Raises:
        ValueError: if torchvision has no such classifier.
    """
    choices = models.list_models(module=models)
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=3)
        hint = f"similar names are {', '.join(near)}" if near else f"it has {', '.join(choices)}"
        raise ValueError(f"model.name must be a classifier of torchvision; got {name!r}; {hint}")
    # Auxiliary heads would make the net return a tuple in training, and without init_weights these two warn.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    net: nn.Module = models.get_model(name, num_classes=num_classes, **options)
    if in_channels != 3:
        _replace_first_conv(net, in_channels)
    net.torchvision_name = name  # type: ignore[assignment]  # torchvision model whose weights fit
    return net


def _replace_first_conv(net: nn.Module, in_channels: int) -> None:
    name, conv = next((name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d))
    assert conv.groups == 1
    replacement = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, replacement)
