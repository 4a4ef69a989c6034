"""Parameters by kind, so that each kind can have its own weight decay and the head its own learning rate."""

from typing import Any

from torch import nn

KINDS = ("kernels", "linear", "biases", "norms")

Group = dict[str, Any]


def kinds(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of a net by kind: kernels of convolutions, linear weights, biases, norms' weights and biases."""
    found: dict[str, list[nn.Parameter]] = {kind: [] for kind in KINDS}
    for layer in net.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(layer, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm):
                kind = "norms"
            elif name == "bias":
                kind = "biases"
            else:
                # By dimension: a convolution's kernel has more than two, whatever its layer is called.
                kind = "kernels" if parameter.dim() > 2 else "linear"
            found[kind].append(parameter)
    return found


def parameter_groups(
    net: nn.Module,
    *,
    kernels_decay: float | None = None,
    linear_decay: float | None = None,
    biases_decay: float | None = None,
    norms_decay: float | None = None,
) -> list[Group]:
    """Groups for an optimizer, one for each kind that there is; a decay of None is the optimizer's `weight_decay`.

    Args:
        net: the net.
        kernels_decay: of the convolutions' kernels.
        linear_decay: of the linear layers' weights.
        biases_decay: of the biases of both.
        norms_decay: of the weights and biases of normalisations.
    """
    decays = dict(zip(KINDS, (kernels_decay, linear_decay, biases_decay, norms_decay), strict=True))
    if all(decay is None for decay in decays.values()):
        return [{"params": [parameter for parameter in net.parameters() if parameter.requires_grad]}]
    return [
        {"params": parameters, "name": kind} | ({} if decays[kind] is None else {"weight_decay": decays[kind]})
        for kind, parameters in kinds(net).items()
        if parameters
    ]
