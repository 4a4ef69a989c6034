"""Example net. Any torch.nn.Module works that takes num_classes and in_channels and maps images (N, C, H, W) to logits (N, K)."""

from torch import Tensor, nn


class TinyNet(nn.Sequential):
    """Two convolutions and a linear layer.

    Args:
        num_classes: number of classes K.
        in_channels: channels of an image.
        width: channels of the convolutions.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__(
            *(nn.Conv2d(in_channels, width, 5, stride=2), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, num_classes)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return super().forward(images)
