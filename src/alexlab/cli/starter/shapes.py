"""Example dataset. Any class works that takes train, val or test and has len(), classes, targets and items (image, label)."""

import numpy as np


class Shapes:
    """Circles and squares of random size and position, drawn in memory.

    Args:
        split: train, val or test.
        num_images: images of the split.
        size: height and width in pixels.
    """

    classes = ("circle", "square")

    def __init__(self, split: str, num_images: int = 256, size: int = 40) -> None:
        self.size = size
        self.seed = {"train": 0, "val": 1, "test": 2}[split]
        self.targets = [index % 2 for index in range(num_images)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return an image, uint8 (H, W, 3), and its label."""
        random = np.random.default_rng([self.seed, index])
        radius = random.integers(self.size // 6, self.size // 3)
        y, x = (np.arange(self.size) - random.integers(radius, self.size - radius) for _ in range(2))
        combine = (np.add, np.maximum)[self.targets[index]]
        inside = combine.outer(y**2, x**2) < radius**2
        pixels = random.integers(0, 100, (self.size, self.size, 3)) + 150 * inside[..., None]
        return pixels.astype(np.uint8), self.targets[index]
