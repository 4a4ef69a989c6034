"""Preprocessing of uint8 images and postprocessing of logits, shared by training and inference."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize uint8 images (N, C, H, W) to a channels-last float tensor.

    Args:
        images: uint8 (N, C, H, W).
        mean: (1, C, 1, 1) or (1, C, H, W), for pixel values in 0..255.
        std: (1, C, 1, 1), for pixel values in 0..255.
    """
    num_images, channels, height, width = images.shape
    # Whole rows of pixels fill the vector units, three channels do not: 5 ms instead of 9 ms for 64 images.
    rows = images.permute(0, 2, 3, 1).reshape(num_images, height, width * channels)
    means, stds = (
        values.permute(0, 2, 3, 1).expand(1, -1, width, channels).reshape(1, -1, width * channels)
        for values in (mean, std)
    )
    return torch.sub(rows, means).div_(stds).view(num_images, height, width, channels).permute(0, 3, 1, 2)


def pixel_levels(values: Sequence[float] | Tensor) -> Tensor:
    """Return one number per channel, or an image (C, H, W), for values in [0, 1] as an argument of `normalize`."""
    levels = 255 * torch.as_tensor(values, dtype=torch.float32)
    return levels[None] if levels.ndim == 3 else levels.view(1, -1, 1, 1)


def drop_unreadable(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the readable images, or two images with fewer labels, so that all ranks run the net: norms need two images."""
    keep = labels >= 0
    if int(keep.sum()) < 2:
        images = images[(~keep).int().argsort(stable=True)[:2]]  # the readable one, if any, comes first
        return images, labels[keep]
    return images[keep], labels[keep]


def expand_binary_logits(logits: Tensor) -> Tensor:
    """Expand a single logit z (N, 1) to the two logits (0, z), see BinaryCrossEntropy; return others (N, K) unchanged."""
    return F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits


def eval_logits(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return float32 logits (N, K) of images; every evaluation and prediction uses them.

    Several views of an image are combined as in section 4.1 of the AlexNet paper: the result is the logarithm of the mean of
    their softmax.

    Args:
        forward: maps uint8 images (N, C, H, W) to logits (N, K).
        images: uint8 images (N, C, H, W), or views of them (N, V, C, H, W).
    """
    if images.ndim == 4:
        return forward(images).float()
    probs = torch.stack([forward(views).float().softmax(1) for views in images.unbind(1)]).mean(0)
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def average_logits(logits: Sequence[Tensor], log_weights: Tensor) -> Tensor:
    """Return the logarithm of the weighted mean of the softmax of M tensors of logits, float32 (N, K).

    It is computed from the logarithms, so that no probability underflows.

    Args:
        logits: M tensors (N, K).
        log_weights: logarithm of each weight, (M,); the weights have the sum 1.
    """
    log_probs = torch.stack([each.float().log_softmax(1) for each in logits])
    return torch.logsumexp(log_probs + log_weights[:, None, None], 0)


class Inference(nn.Module):
    """Trained net with its preprocessing and postprocessing.

    Args:
        net: maps normalized images (N, C, H, W) to logits, (N, K) or (N, 1).
        mean: one number per channel, or an image (C, H, W), for pixel values in [0, 1].
        std: one number per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, *, mean: Sequence[float] | Tensor, std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", pixel_levels(mean), persistent=False)
        self.register_buffer("std", pixel_levels(std), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, C, H, W), on any device, to logits (N, K)."""
        return expand_binary_logits(self.net(self.normalize(images)))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize uint8 images (N, C, H, W), on any device."""
        return normalize(images.to(self.device, non_blocking=True), self.mean, self.std)

    def all_logits(self, images: Tensor) -> list[Tensor]:
        """Return the logits (N, K) of images as in `probs`; an ensemble adds those of its members."""
        return [eval_logits(self, images)]

    def probs(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, C, H, W), or views of them (N, V, C, H, W), to probabilities (N, K)."""
        return eval_logits(self, images).softmax(1)
