"""Pictures of what is inside a net."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torchvision.utils import make_grid

from alexlab.inference.explain.activations import convolutions
from alexlab.output.escape import plot_label

COLUMNS = 16  # filters side by side, as in figure 3 of the paper
MAX_MAPS = 48  # of a layer


def first_filters(net: nn.Module) -> list[Tensor]:
    """The kernels of the first convolution, (F, C, H, W), a block for each tower: as many as the second one has groups."""
    found = [layer for _, layer in convolutions(net)]
    kernels = found[0].weight.detach().cpu().float()
    towers = found[1].groups if len(found) > 1 and len(kernels) % found[1].groups == 0 else 1
    return list(kernels.chunk(towers))


def filters_plot(blocks: Sequence[Tensor]) -> Any:
    """The first kernels as pictures, each stretched to its own range, as figure 3 of the 2012 paper shows them."""
    from matplotlib.figure import Figure

    per_row = min(COLUMNS, len(blocks[0]))
    rows = sum(math.ceil(len(block) / per_row) for block in blocks)
    figure = Figure(figsize=(9, 0.62 * rows + 0.5 * len(blocks)), layout="constrained")
    for number, (axes, block) in enumerate(zip(np.atleast_1d(figure.subplots(len(blocks), 1)), blocks, strict=True), 1):
        kernels = block if block.shape[1] in (1, 3) else block.mean(1, keepdim=True)
        grid = make_grid(kernels, nrow=per_row, padding=1, normalize=True, scale_each=True, pad_value=1.0)
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_axis_off()
        size = " x ".join(map(str, block.shape[1:]))
        axes.set_title(f"{f'tower {number}: ' if len(blocks) > 1 else ''}{len(block)} kernels of {size}", fontsize=9)
    return figure


def maps_plot(maps: Tensor, name: str) -> Any:
    """The maps (K, H, W) of one image in one layer, the strongest ones first."""
    from matplotlib.figure import Figure

    strongest = maps.flatten(1).amax(1).argsort(descending=True, stable=True)[:MAX_MAPS]
    chosen = maps[strongest].float().cpu()
    rows = math.ceil(len(chosen) / 12)
    figure = Figure(figsize=(9, 0.8 * rows + 0.4), layout="constrained")
    axes = figure.subplots()
    grid = make_grid(chosen[:, None], nrow=12, padding=max(1, chosen.shape[-1] // 20), pad_value=float("nan"))
    axes.imshow(grid[0].numpy(), cmap="magma", interpolation="nearest")
    axes.set_axis_off()
    shown = f"the strongest {len(chosen)} of {len(maps)} maps" if len(chosen) < len(maps) else f"{len(maps)} maps"
    axes.set_title(f"{plot_label(name)}: {shown}, {maps.shape[1]} x {maps.shape[2]}", fontsize=9)
    return figure


def sheet(rows: Sequence[Sequence[tuple[np.ndarray, Sequence[str]]]], title: str = "") -> Any:
    """Pictures, uint8 (H, W, C), with some lines above each, in rows."""
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(rows) + (0.4 if title else 0)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for place, row in enumerate(rows):
        for column in range(columns):
            axes = grid[place][column]
            axes.set_axis_off()
            if column < len(row):
                pixels, lines = row[column]
                axes.imshow(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
                axes.set_title("\n".join(map(plot_label, lines)), fontsize=7)
    if title:
        figure.suptitle(title, fontsize=9)
    return figure
