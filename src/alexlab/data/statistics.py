"""Per-channel mean, standard deviation and colour PCA of a split."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from alexlab.data.image_file import Decoding, none_readable
from alexlab.data.splits import Split
from alexlab.distributed.hardware import num_cores
from alexlab.errors import DataError, ImageError
from alexlab.output.progress import track

MIN_STD = 0.001  # a quarter of a grey level: dividing by less would amplify rounding errors
MAX_IMAGES = 10_000  # of larger splits, an evenly spaced sample; its mean is within .003 of that of all images


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of the pixels of a split as values in [0, 1], each image weighted equally.

    Args:
        num_images: number of images that were measured.
        mean, std: one number per channel.
        eigenvalues: eigenvalues of the covariance of the channels, in descending order.
        eigenvectors: their eigenvectors as columns, each with a positive largest component.
    """

    num_images: int
    mean: Sequence[float]
    std: Sequence[float]
    eigenvalues: Sequence[float]
    eigenvectors: Sequence[Sequence[float]]

    def write(self, path: Path) -> None:
        """Write the statistics as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def measure_statistics(
    split: Split, *, decoding: Decoding, max_images: int = MAX_IMAGES, skip_unreadable: bool = False
) -> ChannelStatistics:
    """Decode the images of a split on all cores and measure their channels, with a progress bar in a terminal.

    Args:
        split: images to measure.
        decoding: decoding settings.
        max_images: size of the sample of a larger split.
        skip_unreadable: skip unreadable images instead of raising.

    Raises:
        ImageError: if an image is unreadable.
        DataError: if no image is readable.
    """
    chosen, channels = split.sample_indices(max_images), decoding.channels
    first, second = np.zeros(channels), np.zeros((channels, channels))
    num_images = 0
    # Threads suffice, because Pillow and NumPy release the GIL, and the ranks of the run can still be forked afterwards.
    with ThreadPoolExecutor(num_cores()) as pool:
        moments = pool.map(lambda index: _moments(split, index, decoding, skip_unreadable), chosen)
        for result in track(moments, "measuring colours", len(chosen)):
            if result is not None:
                first, second, num_images = first + result[0], second + result[1], num_images + 1
    if not num_images:
        raise none_readable(split.root)
    first, second = first / num_images, second / num_images
    covariance = second - np.outer(first, first)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[abs(vectors).argmax(0), range(channels)])
    return ChannelStatistics(
        num_images=num_images,
        mean=first.tolist(),
        std=np.sqrt(
            covariance.diagonal().clip(min=0)
        ).tolist(),  # rounding may make the variance of one colour negative
        eigenvalues=values.tolist(),
        eigenvectors=vectors.tolist(),
    )


def check_std(statistics: ChannelStatistics) -> None:
    """Check that pixels can be divided by the measured standard deviation.

    Raises:
        DataError: if a channel is constant, or almost.
    """
    for channel, std in enumerate(statistics.std):
        if not std >= MIN_STD:
            raise DataError(
                f"cannot measure data.std: the standard deviation of channel {channel} over {statistics.num_images} images is "
                f"{round(std, 4):g}, too small to divide by. Check that the images are not all of one colour, or set "
                "data.mean=[0.5] data.std=[0.5]"
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
