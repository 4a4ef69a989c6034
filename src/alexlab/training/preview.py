"""Preview of augmented training images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.utils import make_grid

from alexlab.data.datamodule import ImageDataModule
from alexlab.data.dataset import SeededDataset

NUM_EPOCHS = 4  # number of augmented versions of each image
MAX_CELL = 160  # pixels


def preview_grid(
    data: ImageDataModule, *, num_images: int, mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
) -> Tensor:
    """Return a grid of evenly spaced training images, each followed by its augmented versions in the first epochs.

    The first version of each image is that of the evaluation transform.

    Args:
        data: data module of the run.
        num_images: number of images, two per row of the grid.
        mix: MixUp or CutMix of a batch, or None.

    Returns:
        The grid, uint8 (3, height, width).
    """
    split = data.splits.train
    plain = data.dataset(split, data.eval_transform)
    indices = [index for index in split.sample_indices(num_images) if plain[index][1] >= 0]
    augmented = SeededDataset(data.dataset(split, data.train_transform), seed=data.seed)
    columns = [torch.stack([plain[index][0] for index in indices])]
    labels = torch.tensor([split.labels[index] for index in indices])
    for epoch in range(NUM_EPOCHS):
        images = torch.stack([augmented[epoch, index][0] for index in indices])
        if mix is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(data.seed + epoch)
                images = mix(images.float(), labels)[0].round().to(torch.uint8)
        columns.append(images)
    cells = torch.stack(columns, 1).flatten(0, 1)
    if cells.shape[-1] > MAX_CELL:
        cells = v2.functional.resize(cells, [MAX_CELL, MAX_CELL], antialias=True)
    return make_grid(cells, nrow=2 * len(columns), padding=2, pad_value=255)


def write_preview(grid: Tensor, path: Path, boards: list[Any]) -> None:
    """Write the grid to a PNG file and to the Images tab of each TensorBoard logger."""
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(path)
    for board in boards:
        board.experiment.add_image("augmentation", grid, 0)
