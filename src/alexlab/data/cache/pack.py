"""Packed images: every image decoded and resized once, in one memory-mapped file.

A pack is a folder that NumPy alone can read:

    images.npy    uint8 (N, size, size, channels); a flat array of all pixels if the images differ in shape
    index.json    files, labels, classes, shapes, unreadable files, and the settings that the pack was built with
    hashes.npy    uint8 (N, 32): SHA-256 of each file, zeros if it could not be read
    stats.npy     int64 (N, 3): size, modification time and change time of each file, to detect changes
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

from alexlab.data.crop import CropRule, part_of, shorter_side_resized
from alexlab.data.image_file import Decoding, unreadable
from alexlab.data.listing_cache import folder_id, folder_suffix
from alexlab.data.transforms import CenterView, NearestResize, RandomCropView, Views
from alexlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Size and shape of packed images, the keys of `data.pack`.

    Args:
        size: length of the shorter side, or of both, in pixels; None for the size that the evaluation view needs.
        resize: `shorter` resizes the shorter side to `size`, `squash` both sides, `nearest` both by copying the nearest pixels.
        crop: `center` keeps the central square, `full` the whole resized image.
    """

    size: int | None = None
    resize: str = "shorter"
    crop: str = "center"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("resize", self.resize, ("shorter", "squash", "nearest")),
            ("crop", self.crop, ("center", "full")),
        ):
            if value not in choices:
                raise ConfigError(f"data.pack.{name} must be {', '.join(choices[:-1])} or {choices[-1]}; got {value!r}")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"data.pack.size must be a positive number of pixels; got {self.size}")

    @property
    def square(self) -> bool:
        """True if all images are `size` x `size`."""
        return self.crop == "center" or self.resize != "shorter"

    def view(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the transform from a decoded image (C, H, W) to the packed one."""
        assert self.size is not None
        if self.resize == "nearest":
            return NearestResize(self.size)
        if self.resize == "squash":
            return v2.Resize([self.size, self.size], antialias=True)
        return CenterView(self.size, 1.0) if self.crop == "center" else v2.Resize(self.size, antialias=True)

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Return height and width of the packed image for an image of this size."""
        assert self.size is not None
        if self.square:
            return self.size, self.size
        return shorter_side_resized(height, width, self.size)


class PackedImages:
    """The images of a pack, indexed by their row in the listing that it was built from.

    Args:
        path: folder of the pack.
        required: required SHA-256 of each file, uint8 (N, 32); zeros, or None for all files, to accept any content.
    """

    def __init__(self, path: Path, required: np.ndarray | None = None) -> None:
        self.path = path
        index = json.loads((path / "index.json").read_text())
        self.length = len(index["files"])
        reasons = {int(row): reason for row, reason in index["bad"].items()}
        if required is not None:
            hashes = np.load(path / "hashes.npy")
            changed = (hashes != required).any(1) & required.any(1) & hashes.any(1)
            reasons |= {row: ["changed"] for row in np.flatnonzero(changed).tolist()}
        self.bad = {
            row: unreadable(os.path.join(index["root"], index["files"][row]), *reason)
            for row, reason in reasons.items()
        }
        # Memory-mapped, so that all processes share the pages that one of them has read. Copy-on-write (mode c), as PyTorch
        # warns about read-only arrays.
        self.pixels = np.load(path / "images.npy", mmap_mode="c")
        self.shapes = None if index["shapes"] is None else np.array(index["shapes"], np.int64).reshape(-1, 2)
        if self.shapes is not None:
            sizes = self.shapes.prod(1) * index["channels"]
            self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return self.length

    def load(self, row: int, decoding: Decoding, crop: CropRule | None = None) -> np.ndarray:
        """Return a copy of an image, uint8 (H, W, C), or of the box of a crop; `decoding` is that of the pack.

        Raises:
            ImageError: if its file is unreadable or does not have the required hash, as `decode` raises it.
        """
        return np.array(part_of(self[row], crop))  # transforms may work in place

    def __getitem__(self, row: int) -> np.ndarray:
        """Return an image of the file, uint8 (H, W, C), not to be changed.

        Raises:
            ImageError: if its file was unreadable, as `decode` raises it.
        """
        if row in self.bad:
            raise self.bad[row]
        if self.shapes is None:
            return self.pixels[row]
        height, width = self.shapes[row]
        return self.pixels[self.starts[row] : self.starts[row + 1]].reshape(height, width, -1)


def pack_path(cache_dir: Path, root: str, folder: str, pack: PackConfig, channels: int) -> Path:
    """Return the folder of the pack of a listing."""
    name = f"pack{folder_suffix(folder)}-{pack.resize}-{pack.crop}-{pack.size}x{channels}"
    return cache_dir / folder_id(root) / name


def required_size(view: Any) -> int | None:
    """Return the pack size for the first transform of an evaluation, or None if no pack can replace it."""
    if isinstance(view, CenterView):
        return view.resized
    if isinstance(view, NearestResize):
        return view.size
    if isinstance(view, v2.Resize) and len(view.size) == 2 and view.size[0] == view.size[1]:
        return int(view.size[0])
    return None


def pack_mismatch(view: Any, pack: PackConfig) -> str | None:
    """Return why a pack cannot replace the original images for the first transform of a recipe, or None if it can.

    Random resized crops work on any pack that is large enough and not squashed; they see the central square only if that is
    what the pack keeps.
    """
    if isinstance(view, v2.RandomResizedCrop):
        largest = max(view.size)
        if pack.resize == "shorter" and pack.size is not None and pack.size >= largest:
            return None
        return f"it needs data.pack.resize=shorter and a data.pack.size of at least {largest}"
    if isinstance(view, v2.Resize | NearestResize):
        size = required_size(view)
        if size is None:
            return "its size is not a square"
        resize = "squash" if isinstance(view, v2.Resize) else "nearest"
        fits = pack.resize == resize and pack.size == size
        return None if fits else f"it resizes both sides: use data.pack.resize={resize} data.pack.size={size}"
    if not isinstance(view, CenterView | RandomCropView | Views):
        return f"the first transform must crop or resize; got {type(view).__name__}"
    if pack.resize != "shorter" or pack.size != view.resized:
        return (
            f"it resizes the shorter side to {view.resized}: use data.pack.resize=shorter data.pack.size={view.resized}"
        )
    if isinstance(view, RandomCropView) and not view.square and pack.crop != "full":
        return "it crops from the whole image: use data.pack.crop=full, or square=true for the crop"
    return None
