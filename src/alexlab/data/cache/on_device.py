"""Packed images in device memory, cropped on the device: DataLoader workers draw crop positions and touch no pixels.

Random draws are those of `data.cache=packed`, so cropped and mirrored images are equal bit for bit; resized crops differ by at
most 2 of 256 levels.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from alexlab.data.cache.pack import PackedImages
from alexlab.data.labels import UNREADABLE
from alexlab.data.splits import Split
from alexlab.data.transforms import CenterView, RandomCropView
from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import ConfigError

CROP_FIELDS = ("row", "top", "left", "height", "width", "mirrored")  # columns of a batch of crops
COPY_CHUNK = 1 << 28  # bytes copied to the device at a time


class CropSampler:
    """Crop positions of a recipe, drawn from the random numbers that its transforms would draw.

    Args:
        recipe: transforms: a CenterView, RandomCropView or RandomResizedCrop, then horizontal flips.
        side: side of the packed images in pixels.

    Raises:
        ConfigError: if the recipe has any other transform.
    """

    def __init__(self, recipe: Callable[..., Any], side: int) -> None:
        steps = list(recipe.transforms) if isinstance(recipe, v2.Compose) else [recipe]
        first, *flips = steps or [None]
        self.image_stub = [torch.empty(1, side, side, device="meta")]
        if isinstance(first, CenterView | RandomCropView):
            self.crop: Any = first.crop
            self.draws = getattr(first, "draws", nullcontext)
        elif isinstance(first, v2.RandomResizedCrop):
            self.crop, self.draws = first, nullcontext
        else:
            raise ConfigError(f"the first transform must crop a square; got {type(first).__name__}")
        self.flips = [step for step in flips if isinstance(step, v2.RandomHorizontalFlip)]
        for step in flips:
            if step not in self.flips:
                raise ConfigError(f"only crops and horizontal flips run on the device; got {type(step).__name__}")
        self.resizes = isinstance(first, v2.RandomResizedCrop)
        self.size = int(self.crop.size[0])
        if tuple(self.crop.size) != (self.size, self.size):
            raise ConfigError(f"the first transform must crop a square; got {self.crop.size}")
        self.side = side

    def draw(self) -> list[int]:
        """Return top, left, height and width of a crop of the packed image, and 1 if it is mirrored, else 0."""
        if isinstance(self.crop, v2.CenterCrop):
            edge = round((self.side - self.size) / 2.0)  # torchvision's rule
            box = [edge, edge, self.size, self.size]
        else:
            with self.draws():
                params = self.crop.make_params(self.image_stub)
            box = [params[name] for name in ("top", "left", "height", "width")]
        mirrored = 0
        for flip in self.flips:
            mirrored ^= int(torch.rand(1) < flip.p)
        return [*box, mirrored]


class CropDataset:
    """A packed split as a dataset of crops: (int64 tensor of `CROP_FIELDS`, label).

    Args:
        split: split with its pack.
        sampler: sampler of crop positions.
        unreadable: log of unreadable images; None raises their errors.
    """

    def __init__(self, split: Split, sampler: CropSampler, unreadable: UnreadableLog | None = None) -> None:
        self.split, self.sampler, self.unreadable = split, sampler, unreadable

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pack, rows = self.split.images, self.split.rows
        assert isinstance(pack, PackedImages)
        row, label = index if rows is None else int(rows[index]), int(self.split.labels[index])
        if row in pack.bad:
            if self.unreadable is None:
                raise pack.bad[row]
            self.unreadable.add(pack.bad[row])
            label = UNREADABLE
        return torch.tensor([row, *self.sampler.draw()]), label


class DeviceCropper:
    """Crops of a batch, cut from a pack that is kept on the device.

    Args:
        pack: pack of square images.
        sampler: sampler that has drawn the crops.
    """

    def __init__(self, pack: PackedImages, sampler: CropSampler) -> None:
        self.pack, self.sampler = pack, sampler

    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return images, uint8 (N, C, size, size), channels last, and labels of crops (N, 6) and labels (N,)."""
        crops, labels = batch
        pixels = load_on_device(self.pack, crops.device)
        return (resized_crop if self.sampler.resizes else crop)(pixels, crops, self.sampler.size), labels


_device_cache: dict[tuple[str, torch.device], Tensor] = {}


def load_on_device(pack: PackedImages, device: torch.device) -> Tensor:
    """Return all images of a pack, uint8 (N, side, side, C), in the memory of a device. They are copied once per process.

    Raises:
        ConfigError: if they do not fit into the free memory.
    """
    key = (str(pack.path), device)
    if key not in _device_cache:
        pixels = torch.from_numpy(pack.pixels)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if pixels.nbytes > free:
                raise ConfigError(
                    f"data.cache=device needs {pixels.nbytes / 1e9:.1f} GB of GPU memory; {free / 1e9:.1f} GB are free. "
                    "Use data.cache=packed"
                )
        _device_cache[key] = _copy_to(pixels, device)
    return _device_cache[key]


def _copy_to(pixels: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return pixels
    copy = torch.empty_like(pixels, device=device)
    num_rows = max(1, COPY_CHUNK // max(1, pixels[0].nbytes))
    for start in range(0, len(pixels), num_rows):
        copy[start : start + num_rows].copy_(pixels[start : start + num_rows])
    return copy


def crop(pixels: Tensor, crops: Tensor, size: int) -> Tensor:
    """Crop and mirror packed images.

    Args:
        pixels: uint8 (N, side, side, C).
        crops: int64 (B, 6), see `CROP_FIELDS`.
        size: side of the crops in pixels.

    Returns:
        uint8 (B, C, size, size), channels last.
    """
    rows, top, left, _, _, mirrored = crops.unbind(1)
    offsets = torch.arange(size, device=pixels.device)
    x_offsets = torch.where(mirrored[:, None] > 0, size - 1 - offsets, offsets)
    y, x = top[:, None] + offsets, left[:, None] + x_offsets
    return pixels[rows[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def resized_crop(pixels: Tensor, crops: Tensor, size: int) -> Tensor:
    """Crop, resize and mirror packed images with torchvision's antialiased triangle filter, rows first.

    Args:
        pixels: uint8 (N, side, side, C).
        crops: int64 (B, 6), see `CROP_FIELDS`.
        size: side of the resized crops in pixels.

    Returns:
        uint8 (B, C, size, size), channels last.
    """
    rows, top, left, height, width, mirrored = crops.unbind(1)
    _, side, _, channels = pixels.shape
    count = len(crops)
    images = pixels[rows].permute(0, 2, 1, 3).reshape(count, side, side * channels).float()  # (B, x, y and channel)
    x_weights = resize_weights(left, width, size, side)
    x_weights = torch.where(mirrored[:, None, None] > 0, x_weights.flip(1), x_weights)
    images = _rounded(x_weights @ images).view(count, size, side, channels)
    images = images.permute(0, 2, 1, 3).reshape(count, side, size * channels)  # (B, y, x and channel)
    images = _rounded(resize_weights(top, height, size, side) @ images).to(torch.uint8)
    return images.view(count, size, size, channels).permute(0, 3, 1, 2)


def _rounded(levels: Tensor) -> Tensor:
    """Round to whole levels in 0..255 in place, as torchvision does after each of the two passes."""
    return levels.round_().clamp_(0, 255)


def resize_weights(offset: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """Return the filter weights that resize a segment of each line.

    Args:
        offset: start of the segment, int64 (B,).
        length: length of the segment, int64 (B,).
        size: length of the resized line.
        side: length of the whole line.

    Returns:
        float32 (B, size, side); each row sums to 1.
    """
    scale = length.float() / size
    support = scale.clamp(min=1.0)
    centers = scale[:, None] * (torch.arange(size, device=offset.device) + 0.5)
    positions = torch.arange(side, device=offset.device) + 0.5 - offset[:, None]
    inside = (positions > 0) & (positions < length[:, None])
    distances = (positions[:, None, :] - centers[:, :, None]).abs() / support[:, None, None]
    weights = (1 - distances).clamp_(min=0) * inside[:, None, :]
    return weights / weights.sum(-1, keepdim=True)


def check_crops(recipes: dict[str, Callable[..., Any]], side: int) -> None:
    """Raise ConfigError, with the config key, for a recipe that cannot run on the device."""
    for key, recipe in recipes.items():
        try:
            CropSampler(recipe, side)
        except ConfigError as error:
            raise ConfigError(f"{key} cannot run with data.cache=device: {error}; use data.cache=packed") from error
