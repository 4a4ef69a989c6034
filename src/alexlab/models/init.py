"""Named weight initialization schemes."""

import re
from functools import partial

from torch import nn

GLOROT = nn.init.xavier_uniform_
HE = partial(nn.init.kaiming_normal_, nonlinearity="relu")
SMALL = partial(nn.init.normal_, mean=0.0, std=0.01)
# Initializers of the weights of convolutions and of linear layers; None keeps PyTorch's default.
SCHEMES = {
    "torch": (None, None),
    "he": (HE, HE),
    "xavier": (GLOROT, GLOROT),
    "glorot": (GLOROT, GLOROT),
    "kaiming": (partial(HE, mode="fan_out"), SMALL),
    "paper2012": (SMALL, SMALL),
    "authors2012": (SMALL, SMALL),
    "cuda_convnet": (SMALL, SMALL),
}
NEEDS_ALEXNET = ("paper2012", "authors2012", "cuda_convnet")
# Standard deviations that differ from those of the scheme, by layer.
STDS = {
    "authors2012": dict.fromkeys(("conv3", "conv4", "conv5", "conv6"), 0.03),
    "cuda_convnet": {"conv1": 1e-4},
}
# Convolutions whose biases start at 1 in 2012, like those of the hidden linear layers.
PAPER_ONES = ("conv2", "conv4", "conv5", "conv6")


def init_weights(net: nn.Module, scheme: str) -> None:
    """Initialize all convolutions and linear layers of a net. Norms always start as the identity.

    Args:
        net: net to initialize; `paper2012`, `authors2012` and `cuda_convnet` require AlexNet's layer names.
        scheme: one of

            - `torch`: as the layers initialize themselves; PyTorch's default is uniform with He's bound for a = sqrt(5), as in
              torchvision's AlexNet;
            - `he`: normal, variance 2 / fan in (He et al. 2015, equation 10), zero biases;
            - `xavier` or `glorot`: uniform, variance 2 / (fan in + fan out) (Glorot and Bengio 2010, equation 16), zero
              biases; the default of Keras;
            - `kaiming`: torchvision's scheme for VGG: `he` by fan out for convolutions, N(0, 0.01) for linear layers, zero
              biases;
            - `paper2012`: N(0, 0.01), biases 1 in conv2, conv4, conv5 and the hidden linear layers, 0 elsewhere (Krizhevsky et
              al. 2012, section 5);
            - `authors2012`: the same, but N(0, 0.03) in conv3, conv4 and conv5, as in the layer file of the authors' code
              (layers-145.cfg, released by the Computer History Museum in 2025). A sixth convolution is initialized as conv5,
              as in layers-146.cfg;
            - `cuda_convnet`: N(0, 0.0001) in conv1 and N(0, 0.01) elsewhere, zero biases, for pixels of 0 to 255 without their
              mean (layers-18pct.cfg of cuda-convnet).

    Raises:
        ValueError: if the scheme is unknown, or needs the layers of an AlexNet and the net has others.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"model.init must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    if scheme == "torch":
        return
    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    attentions = [layer for layer in net.modules() if isinstance(layer, nn.MultiheadAttention)]
    hidden = [name for name, layer in layers if isinstance(layer, nn.Linear)][:-1]
    if scheme in NEEDS_ALEXNET and not all(
        re.fullmatch(r"features\.conv\d+|classifier\.fc\d+", name) for name, _ in layers
    ):
        raise ValueError(
            f"model.init={scheme} needs the layers of an AlexNet; got {type(net).__name__}: use he or xavier"
        )
    for_convolutions, for_linear = SCHEMES[scheme]
    for name, layer in layers:
        draw = for_convolutions if isinstance(layer, nn.Conv2d) else for_linear
        leaf = name.rpartition(".")[2]
        if leaf in STDS.get(scheme, {}):
            draw = partial(SMALL, std=STDS[scheme][leaf])
        assert draw is not None
        draw(layer.weight)
        if layer.bias is not None:
            one = scheme in ("paper2012", "authors2012") and (leaf in PAPER_ONES or name in hidden)
            nn.init.constant_(layer.bias, float(one))
    for attention in attentions:  # its projections of queries, keys and values are no linear layers
        assert for_linear is not None
        for name, parameter in attention.named_parameters(recurse=False):
            if name.endswith("proj_weight"):
                for_linear(parameter)
            elif name == "in_proj_bias":
                nn.init.zeros_(parameter)
