"""Classifiers of timm, with the extra `timm`."""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from alexlab import compat
from alexlab.errors import ConfigError, install_hint

TIMEOUT_S = 10.0  # for an answer of the hub
TIMM = "timm"  # as the source of weights: those that timm downloads for a net


def timm_net(num_classes: int, *, name: str, in_channels: int = 3, pretrained: bool = False) -> nn.Module:
    """Return a randomly initialized classifier of timm.

    Args:
        num_classes: number of classes K.
        name: name in timm.list_models(): resnet50d, convnext_atto, ...
        in_channels: channels of an image.
        pretrained: whether a run begins with timm's weights. They are loaded by `alexlab.config.build.pretrained`, since a
            resumed run and a loaded checkpoint do not need them.

    Raises:
        ConfigError: if timm is not installed.
        ValueError: if it has no such classifier. Names such as hf-hub:USER/NET, whose settings timm would download, are refused.
    """
    timm = _import_timm()
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0]}*")[:5]
        similar = f"; similar names are {', '.join(near)}" if near else ""
        raise ValueError(f"model.name must be in timm.list_models(); got {name!r}{similar}")
    net: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    net.timm_source = name, in_channels  # type: ignore[assignment]  # the net of timm whose weights fit
    return net


def timm_weights(name: str, in_channels: int) -> tuple[dict[str, Tensor], str]:
    """Return the weights that timm has for a net, downloaded unless they are in its cache, and a note on their images.

    Args:
        name: name in timm.list_models(), as for `timm_net`.
        in_channels: channels of an image; timm converts the first convolution.

    Raises:
        ConfigError: if there are none, or they cannot be downloaded.
    """
    timm = _import_timm()
    if not timm.is_model_pretrained(name):
        raise ConfigError(
            f"model.pretrained=true needs weights in timm, which has none for {name}; use model.weights=FILE"
        )
    found = timm.get_pretrained_cfg(name)
    where = found.hf_hub_id or found.url
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # ranks are forked from this process, which must not start OpenMP's threads
    try:
        with compat.offline_if_unreachable(TIMEOUT_S):
            state: dict[str, Tensor] = timm.create_model(name, pretrained=True, in_chans=in_channels).state_dict()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).partition(". ")[0][:300]
        raise ConfigError(
            f"model.pretrained=true cannot read the weights of {name} from {where}: {reason}; without a connection, download "
            "them on another machine and use model.weights=FILE"
        ) from error
    finally:
        torch.set_num_threads(num_threads)
    mean, std = (",".join(f"{value:g}" for value in values) for values in (found.mean, found.std))
    note = f"timm trained them on images of {found.input_size[-1]} pixels with data.mean=[{mean}] data.std=[{std}]"
    return state, note


def _import_timm() -> Any:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(f"model=timm needs the package timm: {install_hint('timm')}")
    import timm

    return timm
