"""Mean image of a split: the mean of each pixel over all of its images."""

import io
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexlab.data.dataset import ViewReader
from alexlab.data.fingerprint import cache_key
from alexlab.data.image_file import Decoding, none_readable
from alexlab.data.splits import Split
from alexlab.distributed.hardware import num_cores
from alexlab.errors import ImageError
from alexlab.output.progress import track
from alexlab.records.atomic import write_atomic

CHUNK = 64  # images that a process adds up at a time


def measure_mean_image(
    split: Split,
    view: Callable[[Tensor], Tensor],
    *,
    decoding: Decoding,
    cache_dir: Path,
    view_name: str,
    skip_unreadable: bool = False,
) -> np.ndarray:
    """Return the mean of all images of a split, float32 (C, H, W) of values in [0, 1], from the cache if they are unchanged.

    The levels are added up as integers, so the number of processes does not change the result.

    Args:
        split: images, all of which are read.
        view: transform from a decoded image to a uint8 image (C, H, W).
        decoding: decoding settings.
        cache_dir: folder of the cache.
        view_name: description of the view, part of the cache's key.
        skip_unreadable: skip unreadable images instead of raising.

    Raises:
        ImageError: if an image is unreadable.
        DataError: if no image is readable.
    """
    key = cache_key(split, asdict(decoding), view_name)
    path = None if key is None else cache_dir / "mean_images" / f"{key}.npy"
    if path is not None and path.is_file():
        cached: np.ndarray = np.load(path)
        return cached
    sums = _Sums(split, ViewReader(view, decoding), skip_unreadable)
    # Processes, even with a single core: this one must not start the threads of PyTorch, because ranks are forked from it.
    loader: Any = DataLoader(
        sums,
        batch_size=None,
        num_workers=min(num_cores(), len(sums)),
        multiprocessing_context="fork",
        collate_fn=tuple,  # the default would convert the sums to tensors
    )
    total, count = np.zeros((), np.int64), 0
    for part, num_images in track(loader, "measuring the mean image", len(sums)):
        total, count = total + part, count + num_images
    if not count:
        raise none_readable(split.root)
    mean = (total / (255 * count)).astype(np.float32)
    if path is not None:
        write_image(mean, path)
    return mean


def write_image(image: np.ndarray, path: Path) -> None:
    """Write an array as a file of NumPy, completely or not at all."""
    content = io.BytesIO()
    np.save(content, image)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getbuffer())


class _Sums(Dataset[tuple[np.ndarray, int]]):
    """Chunks of images. Indexing returns the sum of a chunk's levels, int64 (C, H, W), and its number of images."""

    def __init__(self, split: Split, read: ViewReader, skip_unreadable: bool) -> None:
        self.split, self.read, self.skip_unreadable = split, read, skip_unreadable

    def __len__(self) -> int:
        return -(-len(self.split) // CHUNK)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        total, count = np.zeros((), np.int64), 0
        for index in range(number * CHUNK, min(len(self.split), (number + 1) * CHUNK)):
            try:
                image = self.read(partial(self.split.load, index))
            except ImageError:
                if self.skip_unreadable:
                    continue
                raise
            total, count = total + image.numpy(), count + 1
        return total, count
