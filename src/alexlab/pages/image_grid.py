"""Images with captions, as part of a page and as a matplotlib figure."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from rich.cells import cell_len

from alexlab.output.escape import plot_label, shortened, shown
from alexlab.pages.images import data_url, thumbnail_url
from alexlab.pages.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 150  # pixels of a displayed photograph
GAP, LINE, CHARACTER = 10, 15, 6.4  # pixels between images, of a line and of a character in a figure
DPI = 100


class CaptionedImage(NamedTuple):
    """An image and the text below it.

    Args:
        pixels: uint8 (H, W, C).
        lines: lines of the caption.
        scale: enlargement of a drawing such as kernels, which is shown losslessly; 0 for a photograph, shown as a thumbnail.
    """

    pixels: np.ndarray
    lines: Sequence[str]
    scale: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Displayed width and height in pixels."""
        height, width = self.pixels.shape[:2]
        scale = self.scale or min(HEIGHT / height, 2 * HEIGHT / width)
        scale = int(scale) if scale > 1 else scale  # as thumbnail_url does
        return max(1, round(scale * width)), max(1, round(scale * height))

    @property
    def url(self) -> str:
        """The image as a data URL."""
        if not self.scale:
            return thumbnail_url(self.pixels, HEIGHT)
        content = io.BytesIO()
        Image.fromarray(self.pixels).resize(self.size, Image.Resampling.NEAREST).save(content, "PNG")
        return data_url(content.getvalue())


@dataclass(frozen=True)
class ImageGrid:
    """Groups of images that belong together, such as an image and its heat map.

    Args:
        heading: what the images are.
        caption: explanation of all images.
        groups: images of each group.
        groups_per_row: groups next to each other in a figure; a page shows as many as fit.
    """

    heading: str
    caption: str
    groups: Sequence[Sequence[CaptionedImage]]
    groups_per_row: int = 1

    def figure(self) -> "Figure":
        """Return the images with their captions as a figure; long captions are cut."""
        images = list(chain(*self.groups))
        cell_width = max(image.size[0] for image in images) + GAP
        cell_height = max(image.size[1] + LINE * len(image.lines) for image in images) + GAP
        group_width = cell_width * max(map(len, self.groups)) + GAP
        width = group_width * min(self.groups_per_row, len(self.groups))
        title = [shown(self.heading), *_wrapped(self.caption, int(width / CHARACTER))]
        top = LINE * len(title) + 2 * GAP
        height = top + cell_height * math.ceil(len(self.groups) / self.groups_per_row)
        figure = new_figure(figsize=(width / DPI, height / DPI))
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        for number, line in enumerate(title):
            axes.text(GAP, GAP + LINE * (number + 1) - 2, plot_label(line), fontsize=8 if number else 10)
        for number, group in enumerate(self.groups):
            row, column = divmod(number, self.groups_per_row)
            for place, image in enumerate(group):
                left = GAP + column * group_width + place * cell_width
                _draw(axes, image, left, top + row * cell_height, int(cell_width / CHARACTER))
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
        axes.set_axis_off()
        return figure


def _draw(axes: "Axes", image: CaptionedImage, left: float, upper: float, num_characters: int) -> None:
    right, lower = left + image.size[0], upper + image.size[1]
    pixels = image.pixels[:, :, 0] if image.pixels.shape[2] == 1 else image.pixels
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(left, right, lower, upper), interpolation="nearest")
    for number, line in enumerate(image.lines, 1):
        axes.text(left, lower + LINE * number - 3, plot_label(shortened(line, num_characters)), fontsize=8)


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text, broken at spaces."""
    lines = [""]
    for word in shown(text).split():
        if lines[-1] and cell_len(f"{lines[-1]} {word}") > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
