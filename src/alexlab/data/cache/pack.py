"""Packed data: every image decoded and resized once, in one file that is mapped into memory.

A pack is a folder that numpy alone can read:

    images.npy    uint8 (N, size, size, channels), or all pixels in one row where whole images of any shape are kept
    index.json    the files, their labels and classes, the shapes, what cannot be read, how and from what it was made
    stats.npy     int64 (N, 2): size in bytes and time of change of each file, by which a change is noticed
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from alexlab.data.image_file import unreadable
from alexlab.data.listing_cache import folder_id, folder_suffix
from alexlab.data.transforms import CenterView, RandomCropView, Views
from alexlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How images are kept, the keys of `data.pack`.

    Args:
        size: the shorter side, or both, in pixels; None is what the views of the evaluation need.
        resize: `shorter` resizes the shorter side, `squash` both sides to `size`.
        crop: `center` keeps the central square, `full` the whole resized image.
    """

    size: int | None = None
    resize: str = "shorter"
    crop: str = "center"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("resize", self.resize, ("shorter", "squash")),
            ("crop", self.crop, ("center", "full")),
        ):
            if value not in choices:
                raise ConfigError(f"data.pack.{name} must be {' or '.join(choices)}; got {value!r}")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"data.pack.size must be a number of pixels; got {self.size}")

    @property
    def square(self) -> bool:
        """Whether all images have one shape."""
        return self.crop == "center" or self.resize == "squash"

    def view(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """From a decoded image (C, H, W) to what is kept of it."""
        assert self.size is not None
        if self.resize == "squash":
            return v2.Resize([self.size, self.size], antialias=True)
        return CenterView(self.size, 1.0) if self.crop == "center" else v2.Resize(self.size, antialias=True)

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of what is kept of an image of this size (torchvision's rule for the longer side)."""
        assert self.size is not None
        if self.square:
            return self.size, self.size
        if width <= height:
            return int(self.size * height / width), self.size
        return self.size, int(self.size * width / height)


class PackedImages:
    """The images of a pack, by their row in the listing that it was made from.

    Args:
        path: the folder of the pack.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        about = json.loads((path / "index.json").read_text())
        self.length = len(about["files"])
        self.bad = {
            int(row): unreadable(os.path.join(about["root"], about["files"][int(row)]), *found)
            for row, found in about["bad"].items()
        }
        # Mapped for reading: a page that is read once is shared by all processes. Mode c, since PyTorch warns of arrays
        # that it may not write to.
        self.pixels = np.load(path / "images.npy", mmap_mode="c")
        self.shapes = None if about["shapes"] is None else np.array(about["shapes"], np.int64).reshape(-1, 2)
        if self.shapes is not None:
            sizes = self.shapes.prod(1) * about["channels"]
            self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> np.ndarray:
        """The picture, uint8 (H, W, C).

        Raises:
            ImageError: when its file could not be read, as `decode` does.
        """
        if row in self.bad:
            raise self.bad[row]
        if self.shapes is None:
            return self.pixels[row]
        height, width = self.shapes[row]
        return self.pixels[self.starts[row] : self.starts[row + 1]].reshape(height, width, -1)


def pack_path(cache_dir: Path, root: str, folder: str, pack: PackConfig, channels: int) -> Path:
    """Where the pack of a listing lies."""
    name = f"pack{folder_suffix(folder)}-{pack.resize}-{pack.crop}-{pack.size}x{channels}"
    return cache_dir / folder_id(root) / name


def required_size(view: Any) -> int | None:
    """The size of a pack that the first step of an evaluation's view needs; None where no pack can serve it."""
    if isinstance(view, CenterView):
        return view.whole
    if isinstance(view, v2.Resize) and len(view.size) == 2 and view.size[0] == view.size[1]:
        return int(view.size[0])
    return None


def pack_mismatch(view: Any, pack: PackConfig) -> str | None:
    """Why the first step of a recipe's transforms cannot come from a pack, or None.

    A random resized crop comes from any pack that is not squashed and large enough: of the central square, where that is
    what is kept.
    """
    if isinstance(view, v2.RandomResizedCrop):
        largest = max(view.size)
        if pack.resize == "shorter" and pack.size is not None and pack.size >= largest:
            return None
        return f"it needs data.pack.resize=shorter and a data.pack.size of at least {largest}"
    if isinstance(view, v2.Resize):
        size = required_size(view)
        if size is None:
            return "it is no square"
        fits = pack.resize == "squash" and pack.size == size
        return None if fits else f"it squashes the whole image: take data.pack.resize=squash data.pack.size={size}"
    if not isinstance(view, CenterView | RandomCropView | Views):
        return f"a pack cannot stand in for {type(view).__name__}; the first step must cut or resize"
    if pack.resize != "shorter" or pack.size != view.whole:
        return f"its shorter side is {view.whole}: take data.pack.resize=shorter data.pack.size={view.whole}"
    if isinstance(view, RandomCropView) and not view.square and pack.crop != "full":
        return "it cuts from the whole image: take data.pack.crop=full, or its own square=true"
    return None
