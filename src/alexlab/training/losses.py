"""Losses give one number for each image; the classifier takes their mean."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexlab.errors import ConfigError


class CrossEntropy(nn.Module):
    """Cross entropy of the softmax.

    With `class_weights=balanced` an image of class c weighs N / (K N_c), so that all classes weigh the same together and
    the mean weight of a training image is 1; a mean over images, unlike PyTorch's weighted mean, is then the same on any
    number of devices.

    Args:
        class_counts: number of training images of each class.
        label_smoothing: the part of a label's weight that is spread over all classes, 0..1.
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
        weights = counts.sum() / (len(counts) * counts) if class_weights else None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (N, K) and labels, (N,) or probabilities (N, K), to losses (N,)."""
        losses = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none")
        if self.weights is None:
            return losses
        return losses * (self.weights[labels] if labels.ndim == 1 else labels @ self.weights)


class BinaryCrossEntropy(CrossEntropy):
    """Cross entropy of the sigmoid of one logit, for two classes: the net has one output, the logit of the second class.

    The classifier widens the one logit z to (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)), so that scores and
    predictions are those of two outputs.

    Raises:
        ConfigError: when there are not two classes.
    """

    def __init__(
        self, class_counts: Sequence[int], *, label_smoothing: float = 0.0, class_weights: str | None = None
    ) -> None:
        if len(class_counts) != 2:
            raise ConfigError(f"loss=binary_cross_entropy needs 2 classes; the data has {len(class_counts)}")
        super().__init__(class_counts, label_smoothing=label_smoothing, class_weights=class_weights)
        self.num_outputs = 1
