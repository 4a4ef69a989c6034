"""Initial weights by name."""

import re
from functools import partial

from torch import nn

GLOROT = nn.init.xavier_uniform_
HE = partial(nn.init.kaiming_normal_, nonlinearity="relu")
SMALL = partial(nn.init.normal_, mean=0.0, std=0.01)
# How each scheme draws the weights of convolutions and of linear layers; `torch` leaves them as they are.
SCHEMES = {
    "torch": (None, None),
    "he": (HE, HE),
    "xavier": (GLOROT, GLOROT),
    "glorot": (GLOROT, GLOROT),
    "kaiming": (partial(HE, mode="fan_out"), SMALL),
    "paper2012": (SMALL, SMALL),
}
PAPER_ONES = ("conv2", "conv4", "conv5")  # whose biases start at 1, as do those of the hidden linear layers


def init_weights(net: nn.Module, scheme: str) -> None:
    """Draw the weights of all convolutions and linear layers of a net; norms start as the identity in any case.

    Args:
        net: its layers are called conv1, fc6 and so on for `paper2012`.
        scheme: one of

            - `torch`: PyTorch's own, uniform with He's bound for a = sqrt(5), which torchvision's AlexNet has too;
            - `he`: normal, variance 2 / fan in (He et al. 2015, equation 10), zero biases;
            - `xavier` and `glorot`, two names of one scheme: uniform, variance 2 / (fan in + fan out) (Glorot and Bengio 2010,
              equation 16), zero biases, the default of Keras;
            - `kaiming`: torchvision's for VGG: `he` by fan out for convolutions, N(0, 0.01) for linear layers, zero biases;
            - `paper2012`: N(0, 0.01), biases 1 in conv2, conv4, conv5 and the hidden linear layers, 0 elsewhere (Krizhevsky et
              al. 2012, section 5).

    Raises:
        ValueError: if there is no such scheme, or `paper2012` is asked for a net that is no AlexNet.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"model.init must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    if scheme == "torch":
        return
    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hidden = [name for name, layer in layers if isinstance(layer, nn.Linear)][:-1]
    if scheme == "paper2012" and not all(
        re.fullmatch(r"features\.conv[1-5]|classifier\.fc\d+", name) for name, _ in layers
    ):
        raise ValueError(
            f"model.init=paper2012 sets the biases of an AlexNet's layers; got {type(net).__name__}: take he or xavier"
        )
    for_convolutions, for_linear = SCHEMES[scheme]
    for name, layer in layers:
        draw = for_convolutions if isinstance(layer, nn.Conv2d) else for_linear
        assert draw is not None
        draw(layer.weight)
        if layer.bias is not None:
            one = scheme == "paper2012" and (name.rpartition(".")[2] in PAPER_ONES or name in hidden)
            nn.init.constant_(layer.bias, float(one))
