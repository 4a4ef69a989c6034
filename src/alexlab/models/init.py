"""Initial weights by name."""

from torch import nn

SCHEMES = ("torch", "paper2012", "kaiming", "glorot")


def initialise(net: nn.Module, scheme: str) -> None:
    """Draws the weights of all convolutions and linear layers of a net anew; norms start as the identity in any case.

    Args:
        net: its layers are called conv1, fc6 and so on where the scheme goes by numbers.
        scheme: `torch` leaves PyTorch's own (uniform, He's bound with a = sqrt(5)), which torchvision's AlexNet has too;
            `paper2012` is N(0, 0.01), biases 1 in conv2, conv4, conv5 and the hidden linear layers, 0 elsewhere (Krizhevsky
            et al. 2012, section 5); `kaiming` is He's normal by fan out for convolutions, N(0, 0.01) for linear layers, no
            biases, as in torchvision's VGG; `glorot` is Glorot's uniform and no biases, the default of Keras.

    Raises:
        ValueError: when there is no such scheme, or `paper2012` meets a net without those layers.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"model.init must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    if scheme == "torch":
        return
    layers = {
        name.rsplit(".", 1)[-1]: layer
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    if scheme == "paper2012" and "conv1" not in layers:
        raise ValueError(f"model.init=paper2012 is made for the layers of AlexNet; got {type(net).__name__}")
    for name, layer in layers.items():
        if scheme == "glorot":
            nn.init.xavier_uniform_(layer.weight)
        elif scheme == "kaiming" and isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(layer.weight, 0.0, 0.01)
        if layer.bias is not None:
            one = scheme == "paper2012" and (name in ("conv2", "conv4", "conv5") or name in linear[:-1])
            nn.init.constant_(layer.bias, float(one))
