"""Synthetic photographs that cost a loader as much as real ones, for benchmarks without a dataset."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexlab.records.atomic import atomic_dir

CLASSES = ("cool", "warm")
SEED = 0


@dataclass(frozen=True)
class PhotoSettings:
    """Size and number of the photographs.

    Args:
        height, width: in pixels.
        quality: of the JPEG files.
        blur: standard deviation of the blur of a lens, in pixels.
        num_fields: random images, of which the photographs are shifted and mirrored views.
        counts: number of photographs of each split.
    """

    height: int
    width: int
    quality: int
    blur: float
    num_fields: int
    counts: Mapping[str, int]


# The most common size in ImageNet; files of about 50 kB.
SMALL = PhotoSettings(375, 500, quality=90, blur=0.0, num_fields=16, counts={"train": 640, "val": 320})
# A phone's; files of 3.2 MB, 2.1 bits per pixel, as the median of the cats and dogs (2.2).
LARGE = PhotoSettings(3024, 4032, quality=85, blur=1.0, num_fields=2, counts={"train": 48, "val": 24})


def write_synthetic_photos(root: str, settings: PhotoSettings = SMALL) -> None:
    """Write JPEG files of two classes to `root/{train,val}/<class>/<index>.jpg`, all or nothing.

    Like that of photographs, their power spectrum falls as f^-2 (D. J. Field, "Relations between the statistics of natural
    images and the response properties of cortical cells", 1987).

    Args:
        root: folder to create.
        settings: size and number of the photographs.
    """
    from PIL import Image

    generator = np.random.default_rng(SEED)
    fields = [random_photo(settings, generator) for _ in range(settings.num_fields)]
    with atomic_dir(Path(root)) as folder:
        for split, count in settings.counts.items():
            for index in range(count):
                label = index % len(CLASSES)
                shift = generator.integers(0, (settings.height, settings.width)).tolist()
                field = fields[generator.integers(settings.num_fields)]
                pixels = np.roll(field, shift, (0, 1))[:, :: generator.choice((-1, 1))]
                tint = np.array((-20, 0, 20) if label == 0 else (20, 0, -20), np.int16)
                class_dir = folder / split / CLASSES[label]
                class_dir.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray((pixels + tint).clip(0, 255).astype(np.uint8))
                image.save(class_dir / f"{index:04d}.jpg", quality=settings.quality)


def random_photo(settings: PhotoSettings, generator: np.random.Generator) -> np.ndarray:
    """Return a random image, int16 (H, W, 3), with levels around 128."""
    shape = settings.height, settings.width
    rows, columns = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    frequency = np.hypot(rows, columns).astype(np.float32)
    gain = np.exp(-2 * (np.pi * settings.blur * frequency) ** 2)
    frequency[0, 0] = np.inf
    gain /= frequency
    grey, *colors = (
        np.fft.irfft2(np.fft.rfft2(generator.standard_normal(shape, dtype=np.float32)) * gain, s=shape)
        for _ in range(4)
    )
    pixels = np.stack([grey + 0.3 * color for color in colors], axis=-1)
    return (128 + 48 * (pixels - pixels.mean()) / pixels.std()).astype(np.int16)
