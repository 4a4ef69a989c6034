"""Private names of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pet_item(dataset: Any, index: int) -> tuple[Path, int]:
    """Return image file and label of an item of OxfordIIITPet.

    Works around: it publishes decoded images only and takes no `loader`, unlike Flowers102 and Imagenette. Checked with
    torchvision 0.26 and 0.29.
    """
    return Path(dataset._images[index]), int(dataset._labels[index])
