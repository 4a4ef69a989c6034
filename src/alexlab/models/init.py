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
YEAR_2012 = ("paper2012", "authors2012")
ALEXNET_LAYER = re.compile(r"features\.conv\d+|classifier\.fc\d+")  # every layer of an AlexNet
# In an AlexNet: layers with N(0, 0.03) in the authors' code, and those whose biases start at 1, like those of the hidden linear
# layers of every net.
AUTHORS_WIDER = ("features.conv3", "features.conv4", "features.conv5", "features.conv6")
PAPER_ONES = ("features.conv2", "features.conv4", "features.conv5", "features.conv6")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def init_weights(net: nn.Module, scheme: str) -> None:
    """Initialize all convolutions and linear layers of a net. Norms start as the net initializes them.

    Args:
        net: net to initialize.
        scheme: one of

            - `torch`: as the layers initialize themselves; PyTorch's default is uniform with He's bound for a = sqrt(5), as in
              torchvision's AlexNet;
            - `he`: normal, variance 2 / fan in (He et al. 2015, equation 10), zero biases;
            - `xavier` or `glorot`: uniform, variance 2 / (fan in + fan out) (Glorot and Bengio 2010, equation 16), zero
              biases; the default of Keras;
            - `kaiming`: torchvision's scheme for VGG: `he` by fan out for convolutions, N(0, 0.01) for linear layers, zero
              biases;
            - `paper2012`: N(0, 0.01), biases 1 in the hidden linear layers and in an AlexNet's conv2, conv4 and conv5, 0
              elsewhere (Krizhevsky et al. 2012, section 5);
            - `authors2012`: the same, but N(0, 0.03) in an AlexNet's conv3, conv4 and conv5, as in the layer file of the
              authors' code (layers-145.cfg, released by the Computer History Museum in 2025). A sixth convolution is initialized
              as conv5, as in layers-146.cfg;
            - `cuda_convnet`: N(0, 0.0001) in the first layer and N(0, 0.01) elsewhere, zero biases, for pixels of 0 to 255
              without their mean (layers-18pct.cfg of cuda-convnet).

    Raises:
        ValueError: if the scheme is unknown.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"model.init must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    if scheme == "torch":
        return
    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, (*CONVOLUTIONS, nn.Linear))]
    attentions = [layer for layer in net.modules() if isinstance(layer, nn.MultiheadAttention)]
    hidden = [name for name, layer in layers if isinstance(layer, nn.Linear)][:-1]
    is_alexnet = all(ALEXNET_LAYER.fullmatch(name) for name, _ in layers)
    ones = {*hidden, *(PAPER_ONES if is_alexnet else ())} if scheme in YEAR_2012 else set()
    for_convolutions, for_linear = SCHEMES[scheme]
    for number, (name, layer) in enumerate(layers):
        draw = for_linear if isinstance(layer, nn.Linear) else for_convolutions
        if scheme == "authors2012" and is_alexnet and name in AUTHORS_WIDER:
            draw = partial(SMALL, std=0.03)
        elif scheme == "cuda_convnet" and number == 0:
            draw = partial(SMALL, std=1e-4)
        assert draw is not None
        draw(layer.weight)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, float(name in ones))
    for attention in attentions:  # its projections of queries, keys and values are no linear layers
        assert for_linear is not None
        for name, parameter in attention.named_parameters(recurse=False):
            if name.endswith("proj_weight"):
                for_linear(parameter)
            elif name == "in_proj_bias":
                nn.init.zeros_(parameter)
