"""Parameter groups with separate weight decay per kind of parameter, and separate learning rates for biases, head and layers."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from alexlab.errors import ConfigError

KINDS = ("conv", "linear", "bias", "norm")

NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
)

ParamGroup = dict[str, Any]


def parameters_by_kind(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters by kind: conv and linear weights, biases, and the weights and biases of norms."""
    found: dict[str, list[nn.Parameter]] = {kind: [] for kind in KINDS}
    for layer in net.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if isinstance(layer, NORMS):
                kind = "norm"
            elif name == "bias" or name.endswith("_bias"):  # in_proj_bias of nn.MultiheadAttention
                kind = "bias"
            else:
                # By dimension, which also covers convolutions of other libraries.
                kind = "conv" if parameter.dim() > 2 else "linear"
            found[kind].append(parameter)
    return found


def parameter_groups(
    net: nn.Module,
    head: Collection[str] = (),
    *,
    conv_weight_decay: float | None = None,
    linear_weight_decay: float | None = None,
    bias_weight_decay: float | None = None,
    norm_weight_decay: float | None = None,
    bias_lr: float | None = None,
    head_lr: float | None = None,
    layer_lrs: Mapping[str, Sequence[Sequence[float]] | None] | None = None,
) -> list[ParamGroup]:
    """Return parameter groups for an optimizer. None selects the optimizer's own `weight_decay` or `lr`.

    Frozen parameters are included: without a gradient they are not updated until they are unfrozen.

    Args:
        net: net to optimize.
        head: names of the parameters whose shape depends on the number of classes.
        conv_weight_decay: weight decay of convolution kernels.
        linear_weight_decay: weight decay of linear layers' weights.
        bias_weight_decay: weight decay of the biases of both.
        norm_weight_decay: weight decay of the weights and biases of normalization layers.
        bias_lr: learning rate of the biases of convolutions and linear layers, which the schedule scales as the others.
        head_lr: learning rate of the head, including its biases.
        layer_lrs: pairs (epoch, rate) by layer: from that epoch on the layer has that rate, regardless of the schedule. A layer
            is named as in the net, or by the last parts of its name: `conv1` for `features.conv1`.

    Raises:
        ConfigError: if a value is negative, or a layer does not exist.
    """
    decays = dict(
        zip(KINDS, (conv_weight_decay, linear_weight_decay, bias_weight_decay, norm_weight_decay), strict=True)
    )
    values = {f"{kind}_weight_decay": decay for kind, decay in decays.items()} | {
        "bias_lr": bias_lr,
        "head_lr": head_lr,
    }
    for name, value in values.items():
        if value is not None and value < 0:  # torch does not check the values of groups
            raise ConfigError(f"param_groups.{name} must be at least 0; got {value}")
    by_kind = bias_lr is not None or any(decay is not None for decay in decays.values())
    changes = {layer: _checked_changes(layer, pairs) for layer, pairs in (layer_lrs or {}).items() if pairs is not None}
    if not by_kind and head_lr is None and not changes:
        return [{"params": list(net.parameters())}]
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    part_of = dict.fromkeys(names, "body" if head_lr is not None or changes else "")
    in_head = {key for key, name in names.items() if name in head} if head_lr is not None else set()
    part_of |= dict.fromkeys(in_head, "head")
    for layer in changes:
        part_of |= {id(parameter): layer for parameter in _find_layer(net, layer).parameters()}
    groups: dict[str, ParamGroup] = {}
    for part in dict.fromkeys(["", "body", "head", *changes]):
        for kind, parameters in parameters_by_kind(net).items():
            for parameter in parameters:
                if part_of[id(parameter)] != part:
                    continue
                is_head = id(parameter) in in_head
                label = "head" if is_head and part != "head" else ""  # a layer of layer_lrs that is also the head
                name = " ".join(filter(None, (part, label, kind if by_kind else "")))
                group = groups.setdefault(name, {"params": [], "name": name})
                group["params"].append(parameter)
                group |= {} if decays[kind] is None else {"weight_decay": decays[kind]}
                group |= {"lr": bias_lr} if kind == "bias" and bias_lr is not None else {}
                group |= {"lr": head_lr} if is_head else {}
                group |= {"lr_changes": changes[part]} if part in changes else {}
    return list(groups.values())


def _checked_changes(layer: str, pairs: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return pairs (epoch, rate) by ascending epoch.

    Raises:
        ConfigError: if they are not pairs of numbers of at least 0.
    """
    try:
        changes = sorted([epoch, rate] for epoch, rate in pairs)
        valid = bool(changes) and all(epoch >= 0 and rate >= 0 for epoch, rate in changes)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ConfigError(
            f"param_groups.layer_lrs.{layer} must be pairs of an epoch and a learning rate, such as [[68,1e-5],[72,0]]; "
            f"got {pairs}"
        )
    return changes


def _find_layer(net: nn.Module, name: str) -> nn.Module:
    """Return the layer with a name, or with a name that ends in it.

    Raises:
        ConfigError: unless exactly one layer has it.
    """
    layers = {known: layer for known, layer in net.named_modules() if any(True for _ in layer.parameters())}
    found = [layer for known, layer in layers.items() if f".{known}".endswith(f".{name}")]
    if len(found) != 1:
        raise ConfigError(
            f"param_groups.layer_lrs must name one layer each of {', '.join(filter(None, layers))}; got {name!r}"
        )
    return found[0]
