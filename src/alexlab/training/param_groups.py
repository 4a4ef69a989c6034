"""Parameter groups with separate weight decay per kind of parameter and a separate learning rate for the head."""

from collections.abc import Collection
from typing import Any

from torch import nn

from alexlab.errors import ConfigError

KINDS = ("conv", "linear", "bias", "norm")

NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm),
)

ParamGroup = dict[str, Any]


def parameters_by_kind(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters by kind: conv and linear weights, biases, and the weights and biases of norms."""
    found: dict[str, list[nn.Parameter]] = {kind: [] for kind in KINDS}
    for layer in net.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if isinstance(layer, NORMS):
                kind = "norm"
            elif name == "bias":
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
    head_lr: float | None = None,
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
        head_lr: learning rate of the head.
    """
    decays = dict(
        zip(KINDS, (conv_weight_decay, linear_weight_decay, bias_weight_decay, norm_weight_decay), strict=True)
    )
    values = {**{f"{kind}_weight_decay": decay for kind, decay in decays.items()}, "head_lr": head_lr}
    for name, value in values.items():
        if value is not None and value < 0:  # torch does not check the values of groups
            raise ConfigError(f"param_groups.{name} must be at least 0; got {value}")
    by_kind = any(decay is not None for decay in decays.values())
    if not by_kind and head_lr is None:
        return [{"params": list(net.parameters())}]
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups: dict[str, ParamGroup] = {}
    for part in ("body", "head") if head_lr is not None else ("",):
        for kind, parameters in parameters_by_kind(net).items():
            chosen = [p for p in parameters if not part or (names[id(p)] in head) == (part == "head")]
            name = " ".join(filter(None, (part, kind if by_kind else "")))
            if chosen:
                group = groups.setdefault(name, {"params": [], "name": name})
                group["params"] += chosen
                group |= {} if decays[kind] is None else {"weight_decay": decays[kind]}
                group |= {"lr": head_lr} if part == "head" else {}
    return list(groups.values())
