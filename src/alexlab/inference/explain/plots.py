"""Plots of kernels, feature maps and images."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn
from torchvision.utils import make_grid

from alexlab.inference.explain.activations import convolutions
from alexlab.output.escape import plot_label
from alexlab.pages.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILTER_COLUMNS = 16  # as in figure 3 of the 2012 paper
MAP_COLUMNS = 12
MAX_MAPS = 48  # feature maps per layer


def first_filters(net: nn.Module) -> list[Tensor]:
    """Return the kernels of the first convolution, (F, C, H, W), in one block per tower (group of the second convolution)."""
    layers = [layer for _, layer in convolutions(net)]
    kernels = layers[0].weight.detach().cpu().float()
    towers = layers[1].groups if len(layers) > 1 and len(kernels) % layers[1].groups == 0 else 1
    return list(kernels.chunk(towers))


def filters_plot(blocks: Sequence[Tensor]) -> "Figure":
    """Plot kernels as images, each scaled to its own range, as in figure 3 of the 2012 paper.

    Args:
        blocks: kernels of each tower, from `first_filters`.
    """
    columns = min(FILTER_COLUMNS, len(blocks[0]))
    rows = sum(math.ceil(len(block) / columns) for block in blocks)
    figure = new_figure(figsize=(9, 0.62 * rows + 0.5 * len(blocks)))
    for number, (axes, block) in enumerate(zip(np.atleast_1d(figure.subplots(len(blocks), 1)), blocks, strict=True), 1):
        kernels = block if block.shape[1] in (1, 3) else block.mean(1, keepdim=True)
        grid = make_grid(kernels, nrow=columns, padding=1, normalize=True, scale_each=True, pad_value=1.0)
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_axis_off()
        size = " x ".join(map(str, block.shape[1:]))
        axes.set_title(f"{f'tower {number}: ' if len(blocks) > 1 else ''}{len(block)} kernels of {size}", fontsize=9)
    return figure


def feature_maps_plot(maps: Tensor, name: str) -> "Figure":
    """Plot the feature maps of one image in one layer, strongest first.

    Args:
        maps: feature maps, (K, H, W).
        name: name of the layer.
    """
    strongest = maps.flatten(1).amax(1).argsort(descending=True, stable=True)[:MAX_MAPS]
    chosen = maps[strongest].float().cpu()
    rows = math.ceil(len(chosen) / MAP_COLUMNS)
    figure = new_figure(figsize=(9, 0.8 * rows + 0.4))
    axes = figure.subplots()
    padding = max(1, chosen.shape[-1] // 20)
    grid = make_grid(chosen[:, None], nrow=MAP_COLUMNS, padding=padding, pad_value=float("nan"))
    axes.imshow(grid[0].numpy(), cmap="magma", interpolation="nearest")
    axes.set_axis_off()
    count = f"the strongest {len(chosen)} of {len(maps)}" if len(chosen) < len(maps) else f"{len(maps)}"
    axes.set_title(f"{plot_label(name)}: {count} maps, {maps.shape[1]} x {maps.shape[2]}", fontsize=9)
    return figure


def image_grid(rows: Sequence[Sequence[tuple[np.ndarray, Sequence[str]]]], title: str = "") -> "Figure":
    """Plot images in rows, each with lines of text above it.

    Args:
        rows: pixels, uint8 (H, W, C), and lines of text, for each cell of each row.
        title: title of the figure.
    """
    columns = max(len(row) for row in rows)
    figure = new_figure(figsize=(1.5 * columns, 1.75 * len(rows) + (0.4 if title else 0)))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row_axes, row in zip(grid, rows, strict=True):
        for axes, (pixels, lines) in zip(row_axes, row, strict=False):
            axes.imshow(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
            axes.set_title("\n".join(map(plot_label, lines)), fontsize=7)
    if title:
        figure.suptitle(title, fontsize=9)
    return figure
