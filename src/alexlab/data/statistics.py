"""Mean, spread and principal components of the colours of a split, for recipes that are told in terms of their data."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from alexlab.data.image_file import Decoding
from alexlab.data.splits import Split
from alexlab.distributed.hardware import num_cores
from alexlab.errors import DataError, ImageError
from alexlab.output.progress import track

MIN_STD = 0.001  # a quarter of a grey level: dividing by less would blow up rounding
MAX_IMAGES = 10_000  # of a larger split so many, evenly spaced: the mean of as many images is right within .003


@dataclass(frozen=True)
class ChannelStatistics:
    """What the pixels of a split are like, as values in [0, 1]; each image counts as much as any other.

    Args:
        num_images: that were looked at.
        mean, std: of each channel.
        eigenvalues: of the covariance of the channels, the largest first.
        eigenvectors: its columns belong to them; the largest component of each is positive.
    """

    num_images: int
    mean: Sequence[float]
    std: Sequence[float]
    eigenvalues: Sequence[float]
    eigenvectors: Sequence[Sequence[float]]

    def write(self, path: Path) -> None:
        """Writes the numbers as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def measure_statistics(
    split: Split, *, decoding: Decoding, max_images: int = MAX_IMAGES, skip_unreadable: bool = False
) -> ChannelStatistics:
    """Decodes the images of a split on all cores, with a progress bar in a terminal.

    Args:
        split: the files.
        decoding: the settings by which files become pixels.
        max_images: of a larger split, so many are looked at.
        skip_unreadable: go on without the images that cannot be read.

    Raises:
        DataError: with path and reason, when a file is no readable picture.
    """
    chosen, channels = split.sample_indices(max_images), decoding.channels
    first, second = np.zeros(channels), np.zeros((channels, channels))
    # Threads: Pillow and numpy let each other work, and the ranks of the run can still be forked afterwards.
    num_images = 0
    with ThreadPoolExecutor(num_cores()) as pool:
        moments = pool.map(lambda index: _moments(split, index, decoding, skip_unreadable), chosen)
        for found in track(moments, "measuring colours", len(chosen)):
            if found is not None:
                first, second, num_images = first + found[0], second + found[1], num_images + 1
    if not num_images:
        raise DataError(f"no image of {split.root} could be read")
    first, second = first / num_images, second / num_images
    covariance = second - np.outer(first, first)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[abs(vectors).argmax(0), range(channels)])
    return ChannelStatistics(
        num_images=num_images,
        mean=first.tolist(),
        std=np.sqrt(covariance.diagonal().clip(min=0)).tolist(),  # of one colour, rounding may leave less than 0
        eigenvalues=values.tolist(),
        eigenvectors=vectors.tolist(),
    )


def check_std(found: ChannelStatistics) -> None:
    """Check that values can be divided by the standard deviation that was measured.

    Raises:
        DataError: if a channel is the same everywhere, or almost.
    """
    for channel, std in enumerate(found.std):
        if not std >= MIN_STD:
            raise DataError(
                f"data.std must be given where it cannot be measured: the standard deviation of channel {channel} is "
                f"{round(std, 4):g} over {found.num_images} images, too little to divide by. Check that the images are not "
                "all of one colour, or set data.mean=[0.5] data.std=[0.5]"
            )


def _moments(
    split: Split, index: int, decoding: Decoding, skip_unreadable: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        pixels = split.load(index, decoding).reshape(-1, decoding.channels).astype(np.float64) / 255
    except ImageError:
        if skip_unreadable:
            return None
        raise
    return pixels.mean(0), np.einsum("pi,pj->ij", pixels, pixels) / len(pixels)
