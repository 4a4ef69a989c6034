"""A sheet of training images as the net will see them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.utils import make_grid

from alexlab.data.datamodule import ImageDataModule
from alexlab.data.samplers import SeededDataset

NUM_PRESENTATIONS = 4
MAX_CELL = 160  # pixels


def preview_grid(
    data: ImageDataModule, *, num_images: int, mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
) -> Tensor:
    """Images of the training split, evenly spaced: each as the evaluation sees it, then as the first epochs will.

    Args:
        data: the data of a run.
        num_images: how many images, two in a row of the sheet.
        mix: what mixes the images of a batch, if anything.

    Returns:
        uint8 (3, height, width).
    """
    split = data.splits.train
    plain = data.dataset(split, data.eval_transform)
    indices = [index for index in split.sample_indices(num_images) if plain[index][1] >= 0]
    augmented = SeededDataset(data.dataset(split, data.train_transform), seed=data.seed)
    columns = [torch.stack([plain[index][0] for index in indices])]
    labels = torch.tensor([split.labels[index] for index in indices])
    for epoch in range(NUM_PRESENTATIONS):
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


def write_preview(sheet: Tensor, path: Path, boards: list[Any]) -> None:
    """Writes the sheet to a PNG file and to the Images tab of each TensorBoard logger."""
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
    for board in boards:
        board.experiment.add_image("augmentation", sheet, 0)
