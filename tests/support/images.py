"""Small folders of images for the tests."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = {f"train/{name}": 8 for name in ("ant", "bee", "cat")} | {
    "val/ant": 4,
    "val/bee": 4,
    "val/cat": 3,
    "test/ant": 3,
    "test/bee": 2,
    "test/cat": 2,
}


def write_images(root: Path, counts: dict[str, int], *, size: int = 70, seed: int = 0) -> Path:
    """Write `counts[folder]` noisy images into each folder; the brightness identifies the class."""
    generator = np.random.default_rng(seed)
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        level = 60 * (sorted({Path(name).name for name in counts}).index(Path(folder).name) + 1)
        for index in range(count):
            pixels = generator.integers(0, 40, (size, size + number, 3)) + level
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / folder / f"{index:03d}.png")
    return root


def replace_unseen(path: Path) -> None:
    """Change a byte of a file but keep its size and times, as a copy that preserves times may do."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
