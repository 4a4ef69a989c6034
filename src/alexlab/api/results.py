"""Results of a trained model: predictions and explanations."""

import io
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from alexlab.data.dataset import to_tensor
from alexlab.inference.explain.gradcam import overlaid

MIN_SIDE = 256  # pixels of a displayed explanation


@dataclass(frozen=True)
class Prediction:
    """Most probable classes of an image.

    Args:
        labels: display names of the classes, most probable first.
        probs: their probabilities.
        path: path of the image; empty for an image in memory.
    """

    labels: tuple[str, ...]
    probs: tuple[float, ...]
    path: str = ""

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[0]

    @property
    def prob(self) -> float:
        """The probability of the most probable class."""
        return self.probs[0]

    def __str__(self) -> str:
        return ", ".join(f"{label} {prob:.3f}" for label, prob in zip(self.labels, self.probs, strict=True))


@dataclass(frozen=True)
class Explanation:
    """Grad-CAM of an image: where the evidence for a class is.

    Args:
        label: display name of the explained class.
        prob: its probability.
        image: input of the network before normalization, uint8 (H, W, C).
        cam: evidence, float32 (H, W), at most 1; zero everywhere if nothing is evidence for the class.
    """

    label: str
    prob: float
    image: np.ndarray = field(repr=False)
    cam: np.ndarray = field(repr=False)

    def overlay(self) -> Image.Image:
        """Return the image under its heat map."""
        return Image.fromarray(overlaid(to_tensor(self.image), torch.from_numpy(self.cam)).numpy())

    def _repr_png_(self) -> bytes:
        """Return the overlay as a PNG file, which notebooks display, enlarged if it is small."""
        content, image = io.BytesIO(), self.overlay()
        scale = max(1, MIN_SIDE // max(image.size))
        image.resize((scale * image.width, scale * image.height)).save(content, "PNG")
        return content.getvalue()
