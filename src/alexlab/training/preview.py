"""Preview of augmented training images."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alexlab.data.datamodule import ImageDataModule
from alexlab.data.dataset import SeededDataset
from alexlab.data.transforms import set_epoch
from alexlab.pages.image_grid import CaptionedImage, ImageGrid
from alexlab.pages.plots import png

NUM_EPOCHS = 4  # number of augmented versions of each image


def preview_grid(
    data: ImageDataModule, *, num_images: int, mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
) -> ImageGrid:
    """Return evenly spaced training images, each followed by its augmented versions in the first epochs.

    The original is the view of the evaluation transform.

    Args:
        data: data module of the run.
        num_images: number of images.
        mix: MixUp or CutMix of a batch, or None.
    """
    split = data.splits.train
    plain = data.dataset(split, data.eval_transform)
    indices = [index for index in split.sample_indices(num_images) if plain[index][1] >= 0]
    indices = indices or [next(index for index in range(len(split)) if plain[index][1] >= 0)]
    augmented = SeededDataset(
        data.dataset(split, data.train_transform), seed=data.seed, on_epoch=partial(set_epoch, data.train_transform)
    )
    versions = [torch.stack([plain[index][0] for index in indices])]
    labels = torch.tensor([split.labels[index] for index in indices])
    for epoch in range(NUM_EPOCHS):
        images = torch.stack([augmented[epoch, index][0] for index in indices])
        if mix is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(data.seed + epoch)
                images = mix(images.float(), labels)[0].round().to(torch.uint8)
        versions.append(images)
    captions = ["original", *(f"epoch {epoch}" for epoch in range(1, NUM_EPOCHS + 1))]
    groups = [
        [
            CaptionedImage(image.permute(1, 2, 0).numpy(), (split.classes[label] if original else "", caption))
            for image, caption, original in zip(images, captions, (True, *[False] * NUM_EPOCHS), strict=True)
        ]
        for images, label in zip(torch.stack(versions, 1), labels.tolist(), strict=True)
    ]
    caption = (
        "Original: the view that the evaluation uses, without augmentation. Epoch 1, 2, ...: what the network sees in "
        "the first epochs."
    )
    return ImageGrid("Training images and their augmented versions", caption, groups, groups_per_row=2)


def write_preview(grid: ImageGrid, path: Path, boards: list[Any]) -> None:
    """Write the grid to a PNG file and to the Images tab of each TensorBoard logger."""
    content = png(grid.figure())
    path.write_bytes(content)
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    for board in boards:
        board.experiment.add_image("augmentation", pixels, 0, dataformats="HWC")
