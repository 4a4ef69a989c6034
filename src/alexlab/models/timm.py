"""Classifiers of timm, with the extra `timm`."""

import importlib.util

from torch import nn

from alexlab.errors import ConfigError


def timm_net(num_classes: int, *, name: str, in_channels: int = 3) -> nn.Module:
    """Return a randomly initialized classifier of timm.

    Args:
        num_classes: number of classes K.
        name: name in timm.list_models(): resnet50d, convnext_atto, ...
        in_channels: channels of an image.

    Raises:
        ConfigError: if timm is not installed.
        ValueError: if it has no such classifier. Names such as hf-hub:USER/NET, which download code's settings, are refused.
    """
    if importlib.util.find_spec("timm") is None:
        raise ConfigError("model=timm needs the package timm: pip install 'alexlab[timm]'")
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0]}*")[:5]
        similar = f"; similar names are {', '.join(near)}" if near else ""
        raise ValueError(f"model.name must be in timm.list_models(); got {name!r}{similar}")
    net: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    return net
