"""Losses per image; the LightningModule averages them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexlab.errors import ConfigError


class CrossEntropy(nn.Module):
    """Softmax cross entropy.

    With `class_weights=balanced`, an image of class c has the weight N / (K N_c): all classes have the same total weight, and
    the mean weight of a training image is 1. The plain mean over images is then the same on any number of devices, unlike
    PyTorch's weighted mean.

    Args:
        class_counts: number of training images of each class.
        label_smoothing: fraction of the target probability that is spread over all classes, in [0, 1).
        class_weights: `balanced` or None.
    """

    weights: Tensor | None

    def __init__(
        self, class_counts: Sequence[int], *, label_smoothing: float = 0.0, class_weights: str | None = None
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing must lie in [0, 1); got {label_smoothing}")
        if class_weights not in (None, "balanced"):
            raise ConfigError(f"loss.class_weights must be balanced or null; got {class_weights!r}")
        self.label_smoothing = label_smoothing
        self.num_outputs = len(class_counts)
        counts = torch.tensor(class_counts, dtype=torch.float)
        weights = counts.sum() / (len(counts) * counts.clamp(min=1)) if class_weights else None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (N, K) and labels, (N,) or probabilities (N, K), to losses (N,)."""
        losses = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none")
        if self.weights is None:
            return losses
        # Not a matrix product, which autocast computes in bfloat16.
        return losses * (self.weights[labels] if labels.ndim == 1 else (labels * self.weights).sum(1))


class BinaryCrossEntropy(CrossEntropy):
    """Sigmoid cross entropy for two classes: the net has one output, the logit of the second class.

    `expand_binary_logits` expands this logit z to (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)), so that metrics and
    predictions are computed as for two outputs.

    Raises:
        ConfigError: if the number of classes is not 2.
    """

    def __init__(
        self, class_counts: Sequence[int], *, label_smoothing: float = 0.0, class_weights: str | None = None
    ) -> None:
        if len(class_counts) != 2:
            raise ConfigError(
                f"loss=binary_cross_entropy needs 2 classes; the data has {len(class_counts)}: use loss=cross_entropy"
            )
        super().__init__(class_counts, label_smoothing=label_smoothing, class_weights=class_weights)
        self.num_outputs = 1
