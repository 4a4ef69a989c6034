"""Synthetic photographs that cost a loader as much as real ones, for benchmarks without a dataset."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from alexlab.records.atomic import atomic_dir

HEIGHT, WIDTH = 375, 500  # pixels, the most common size in ImageNet
QUALITY = 90  # of the JPEG files; they have about 50 kB each
COUNTS = {"train": 640, "val": 320}
CLASSES = ("cool", "warm")
NUM_FIELDS = 16  # random fields; the images are shifted and mirrored views of them
SEED = 0


def write_synthetic_photos(root: str, counts: Mapping[str, int] = COUNTS) -> None:
    """Write JPEG files of two classes to `root/{train,val}/<class>/<index>.jpg`, all or nothing.

    Like that of photographs, their power spectrum falls as f^-2 (D. J. Field, "Relations between the statistics of natural
    images and the response properties of cortical cells", 1987).

    Args:
        root: folder to create.
        counts: number of images of each split.
    """
    from PIL import Image

    generator = np.random.default_rng(SEED)
    fields = [_field(generator) for _ in range(NUM_FIELDS)]
    with atomic_dir(Path(root)) as folder:
        for split, count in counts.items():
            for index in range(count):
                label = index % len(CLASSES)
                shift = generator.integers(0, (HEIGHT, WIDTH)).tolist()
                pixels = np.roll(fields[generator.integers(NUM_FIELDS)], shift, (0, 1))[:, :: generator.choice((-1, 1))]
                tint = np.array((-20, 0, 20) if label == 0 else (20, 0, -20))
                class_dir = folder / split / CLASSES[label]
                class_dir.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray((pixels + tint).clip(0, 255).astype(np.uint8))
                image.save(class_dir / f"{index:04d}.jpg", quality=QUALITY)


def _field(generator: np.random.Generator) -> np.ndarray:
    """Return a random image, float (H, W, 3), with levels around 128."""
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.fftfreq(WIDTH)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    grey, *colors = (
        np.fft.ifft2(np.fft.fft2(generator.standard_normal((HEIGHT, WIDTH))) / frequency).real for _ in range(4)
    )
    pixels = np.stack([grey + 0.3 * color for color in colors], axis=-1)
    return 128 + 48 * (pixels - pixels.mean()) / pixels.std()
