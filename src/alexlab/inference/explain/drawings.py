"""Kernels and feature maps as images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from alexlab.inference.explain.activations import convolutions
from alexlab.pages.image_grid import CaptionedImage

FILTER_COLUMNS = 16  # as in figure 3 of the 2012 paper
MAP_COLUMNS = 12
MAX_MAPS = 48  # feature maps per layer
WIDTH = 800  # pixels of a drawing, at most


def first_filters(net: nn.Module) -> list[Tensor]:
    """Return the kernels of the first convolution, (F, C, H, W), in one block per tower (group of the second convolution)."""
    layers = [layer for _, layer in convolutions(net)]
    kernels = layers[0].weight.detach().cpu().float()
    second = layers[1] if len(layers) > 1 else None
    if (
        second is None or second.groups == second.in_channels or len(kernels) % second.groups
    ):  # or a depthwise convolution
        return [kernels]
    return list(kernels.chunk(second.groups))


def draw_filters(blocks: Sequence[Tensor]) -> list[CaptionedImage]:
    """Return the kernels of each tower as one image, each kernel scaled to its own range, as in figure 3 of the 2012 paper.

    Args:
        blocks: kernels of each tower, from `first_filters`.
    """
    images = []
    for number, block in enumerate(blocks, 1):
        kernels = block if block.shape[1] in (1, 3) else block.mean(1, keepdim=True)
        low, high = (getattr(kernels, name)((1, 2, 3), keepdim=True) for name in ("amin", "amax"))
        size = " x ".join(map(str, block.shape[1:]))
        title = f"{f'tower {number}: ' if len(blocks) > 1 else ''}{len(block)} kernels of {size}"
        scaled = (kernels - low) / (high - low).clamp(min=1e-12)
        images.append(_mosaic(scaled.expand(-1, 3, -1, -1), FILTER_COLUMNS, [title]))
    return images


def draw_feature_maps(maps: Tensor, name: str) -> CaptionedImage:
    """Return the feature maps of one image in one layer as one image, the strongest first.

    Args:
        maps: feature maps, (K, H, W), of which positive values are drawn.
        name: name of the layer.
    """
    import matplotlib

    maps = maps.relu().float().cpu()
    strongest = maps.flatten(1).amax(1).argsort(descending=True, stable=True)[:MAX_MAPS]
    scaled = maps[strongest] / maps.amax().clamp(min=1e-12)
    colors = torch.from_numpy(matplotlib.colormaps["viridis"](scaled.numpy())[..., :3]).permute(0, 3, 1, 2)
    which = f"the strongest {len(scaled)} of {len(maps)}" if len(scaled) < len(maps) else f"{len(maps)}"
    return _mosaic(colors, MAP_COLUMNS, [f"{name}: {which} maps, {maps.shape[1]} x {maps.shape[2]}"])


def _mosaic(images: Tensor, columns: int, lines: Sequence[str]) -> CaptionedImage:
    """Return images, (N, 3, H, W) in 0..1, next to each other on a transparent background."""
    padding = max(1, images.shape[-1] // 20)
    opaque = torch.cat([images, torch.ones_like(images[:, :1])], 1)
    grid = make_grid(opaque, nrow=min(columns, len(images)), padding=padding)
    pixels = (255 * grid).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return CaptionedImage(pixels, lines, scale=max(1, WIDTH // pixels.shape[1]))
