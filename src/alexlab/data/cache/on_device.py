"""Packed images that live in the memory of the device and are cut there: loader processes draw where, and touch no pixel.

A run on it has the images of `data.cache=packed`, draw by draw: cut and mirrored ones bit for bit, resized ones within two
levels of 256.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from alexlab.data.cache.pack import PackedImages
from alexlab.data.samplers import UNREADABLE
from alexlab.data.splits import Split
from alexlab.data.transforms import CenterView, RandomCropView
from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import ConfigError

CROP_FIELDS = ("row", "top", "left", "height", "width", "mirrored")  # of an image of a batch
COPY_CHUNK = 1 << 28  # bytes that are copied to a device at once


class CropSampler:
    """Draws where the images of a recipe are crop, with the draws that its transforms would make.

    Args:
        recipe: the transforms: first a CenterView, RandomCropView or RandomResizedCrop, then mirrors.
        side: of the packed images, in pixels.

    Raises:
        ConfigError: for a transform that does something else.
    """

    def __init__(self, recipe: Callable[..., Any], side: int) -> None:
        steps = list(recipe.transforms) if isinstance(recipe, v2.Compose) else [recipe]
        first, *mirrors = steps or [None]
        self.stub = [torch.empty(1, side, side, device="meta")]
        if isinstance(first, CenterView | RandomCropView):
            self.first: Any = first.cut
        elif isinstance(first, v2.RandomResizedCrop):
            self.first = first
        else:
            raise ConfigError(f"its first transform must cut a square; got {type(first).__name__}")
        self.mirrors = [step for step in mirrors if isinstance(step, v2.RandomHorizontalFlip)]
        for step in mirrors:
            if step not in self.mirrors:
                raise ConfigError(
                    f"on the device images are cut and mirrored, and nothing else; got {type(step).__name__}"
                )
        self.resizes = isinstance(first, v2.RandomResizedCrop)
        self.size = int(self.first.size[0])
        if tuple(self.first.size) != (self.size, self.size):
            raise ConfigError(f"its first transform must cut a square; got {self.first.size}")
        self.side = side

    def draw(self) -> list[int]:
        """Top, left, height and width of the part of the packed image, and 1 where it is mirrored."""
        if isinstance(self.first, v2.CenterCrop):
            edge = round((self.side - self.size) / 2.0)  # torchvision's rule
            part = [edge, edge, self.size, self.size]
        else:
            drawn = self.first.make_params(self.stub)
            part = [drawn[name] for name in ("top", "left", "height", "width")]
        mirrored = 0
        for mirror in self.mirrors:
            mirrored ^= int(torch.rand(1) < mirror.p)
        return [*part, mirrored]


class CropDataset:
    """A packed split as a data set of numbers: an int64 tensor of `CROP_FIELDS` for each image, and its label.

    Args:
        split: with its pack.
        sampler: draws where.
        unreadable: takes the images that could not be read; None makes each an error.
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
    """Makes the images of a batch of numbers on the device, from a pack that it keeps there.

    Args:
        pack: of square images.
        sampler: what has drawn the numbers.
    """

    def __init__(self, pack: PackedImages, sampler: CropSampler) -> None:
        self.pack, self.sampler = pack, sampler

    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Numbers (N, 6) and labels (N,) to uint8 images (N, C, size, size), channels last, and the labels."""
        numbers, labels = batch
        pixels = load_on_device(self.pack, numbers.device)
        return (resized_crop if self.sampler.resizes else crop)(pixels, numbers, self.sampler.size), labels


_held: dict[tuple[str, torch.device], Tensor] = {}


def load_on_device(pack: PackedImages, device: torch.device) -> Tensor:
    """All images of a pack, uint8 (N, side, side, C), in the memory of a device, where they stay.

    Raises:
        ConfigError: when there is no room for them.
    """
    key = (str(pack.path), device)
    if key not in _held:
        pixels = torch.from_numpy(pack.pixels)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if pixels.nbytes > free:
                raise ConfigError(
                    f"data.cache=device needs {pixels.nbytes / 1e9:.1f} GB of the GPU's memory; {free / 1e9:.1f} GB are free. "
                    "Take data.cache=packed"
                )
        _held[key] = _copied(pixels, device)
    return _held[key]


def _copied(pixels: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return pixels
    held = torch.empty_like(pixels, device=device)
    rows = max(1, COPY_CHUNK // max(1, pixels[0].nbytes))
    for start in range(0, len(pixels), rows):
        held[start : start + rows].copy_(pixels[start : start + rows])
    return held


def crop(pixels: Tensor, numbers: Tensor, size: int) -> Tensor:
    """Squares of packed images.

    Args:
        pixels: uint8 (N, side, side, C).
        numbers: int64 (B, 6), see `CROP_FIELDS`.
        size: of the squares.

    Returns:
        uint8 (B, C, size, size), channels last.
    """
    rows, top, left, _, _, mirrored = numbers.unbind(1)
    places = torch.arange(size, device=pixels.device)
    across = torch.where(mirrored[:, None] > 0, size - 1 - places, places)
    lines, columns = top[:, None] + places, left[:, None] + across
    return pixels[rows[:, None, None], lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resized_crop(pixels: Tensor, numbers: Tensor, size: int) -> Tensor:
    """Parts of packed images, resized to squares with the antialiased triangle filter of torchvision, rows first.

    Args:
        pixels, numbers, size: as for `cut`.

    Returns:
        uint8 (B, C, size, size), channels last.
    """
    rows, top, left, height, width, mirrored = numbers.unbind(1)
    _, side, _, channels = pixels.shape
    count = len(numbers)
    chosen = pixels[rows].permute(0, 2, 1, 3).reshape(count, side, side * channels).float()  # (B, x, y and channel)
    along = resize_weights(left, width, size, side)
    along = torch.where(mirrored[:, None, None] > 0, along.flip(1), along)
    lines = rounded(along @ chosen).view(count, size, side, channels)
    lines = lines.permute(0, 2, 1, 3).reshape(count, side, size * channels)  # (B, y, x and channel)
    images = rounded(resize_weights(top, height, size, side) @ lines).to(torch.uint8)
    return images.view(count, size, size, channels).permute(0, 3, 1, 2)


def rounded(levels: Tensor) -> Tensor:
    """To whole levels in 0..255, as torchvision rounds after each of the two passes."""
    return levels.round_().clamp_(0, 255)


def resize_weights(offset: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """The weights by which a part of a line becomes a line of another length.

    Args:
        offset, length: of the part, int64 (B,).
        size: of the new line.
        side: of the whole line.

    Returns:
        float32 (B, size, side); each row sums to 1.
    """
    scale = length.float() / size
    reach = scale.clamp(min=1.0)
    centers = scale[:, None] * (torch.arange(size, device=offset.device) + 0.5)
    cells = torch.arange(side, device=offset.device) + 0.5 - offset[:, None]
    inside = (cells > 0) & (cells < length[:, None])
    distances = (cells[:, None, :] - centers[:, :, None]).abs() / reach[:, None, None]
    weights = (1 - distances).clamp_(min=0) * inside[:, None, :]
    return weights / weights.sum(-1, keepdim=True)


def check_crops(recipes: dict[str, Callable[..., Any]], side: int) -> None:
    """Raises ConfigError, with the place in the config, for a recipe that the device cannot follow."""
    for where, recipe in recipes.items():
        try:
            CropSampler(recipe, side)
        except ConfigError as error:
            raise ConfigError(f"{where} cannot come from data.cache=device: {error}; take data.cache=packed") from error
