import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from alexlab.data.discovery import find_splits
from alexlab.data.sources.synthetic import HEIGHT, WIDTH, write_synthetic_photos

COUNTS = {"train": 24, "val": 12}


def test_photos_are_jpeg_files_of_two_classes(tmp_path: Path) -> None:
    write_synthetic_photos(str(tmp_path / "one"), COUNTS)
    splits = find_splits(str(tmp_path / "one"), val_fraction=0.2, test_fraction=0.0)
    assert (splits.train.class_counts(), splits.val.class_counts()) == ([12, 12], [6, 6])
    assert list(splits.classes) == ["cool", "warm"]
    sizes = [path.stat().st_size for path in (tmp_path / "one").rglob("*.jpg")]
    assert 20_000 < np.mean(sizes) < 120_000
    pixels = {}
    for name in splits.classes:
        with Image.open(tmp_path / f"one/val/{name}/{0 if name == 'cool' else 1:04d}.jpg") as image:
            assert image.size == (WIDTH, HEIGHT)
            pixels[name] = np.asarray(image).astype(float)
    means = {name: values.mean((0, 1)) for name, values in pixels.items()}
    assert means["warm"][0] - means["warm"][2] > means["cool"][0] - means["cool"][2]
    assert pixels["cool"].std() > 20


def test_photos_are_deterministic(tmp_path: Path) -> None:
    def digest(name: str) -> str:
        write_synthetic_photos(str(tmp_path / name), COUNTS)
        files = sorted((tmp_path / name).rglob("*.jpg"))
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    assert digest("one") == digest("two")
