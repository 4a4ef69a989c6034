"""From uint8 images to probabilities: what goes before and after a net, in training and after it."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images (N, C, H, W) as the net takes them, channels last; mean and std (1, C, 1, 1) are of values in 0..255."""
    number, channels, height, width = images.shape
    # Whole lines of pixels are long enough for the vector units, three channels are not: 5 ms instead of 9 for 64 images.
    lines = images.permute(0, 2, 3, 1).reshape(number, height, width * channels)
    means, stds = (values.view(1, 1, channels).repeat(1, 1, width) for values in (mean, std))
    return torch.sub(lines, means).div_(stds).view(number, height, width, channels).permute(0, 3, 1, 2)


def expand_binary_logits(logits: Tensor) -> Tensor:
    """Logits (N, K); of a net with the one logit z of the second of two classes, these are (0, z), see BinaryCrossEntropy."""
    return F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits


def mean_probs(forward: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
    """Views (N, V, C, H, W) to the mean of their softmax, (N, K), as in the 2012 paper, section 4.1."""
    return torch.stack([forward(images).float().softmax(1) for images in views.unbind(1)]).mean(0)


class Inference(nn.Module):
    """A trained net with what goes before and after it.

    Args:
        net: normalised images (N, C, H, W) to logits, (N, K) or (N, 1).
        mean, std: one number for each channel, of values in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (N, C, H, W), on any device, to logits (N, K)."""
        return expand_binary_logits(self.net(self.normalize(images)))

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images (N, C, H, W), on any device, as the net takes them."""
        return normalize(images.to(self.device, non_blocking=True), self.mean, self.std)

    def probs(self, images: Tensor) -> Tensor:
        """uint8 images (N, C, H, W), or views of images (N, V, C, H, W), to probabilities (N, K)."""
        return self(images).float().softmax(1) if images.ndim == 4 else mean_probs(self, images)
