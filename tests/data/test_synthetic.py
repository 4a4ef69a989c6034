import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from alexlab.data.discovery import find_splits
from alexlab.data.sources.synthetic import LARGE, SMALL, write_synthetic_photos

FEW = replace(SMALL, counts={"train": 24, "val": 12})


def test_photos_are_jpeg_files_of_two_classes(tmp_path: Path) -> None:
    write_synthetic_photos(str(tmp_path / "one"), FEW)
    splits = find_splits(str(tmp_path / "one"), val_fraction=0.2, test_fraction=0.0)
    assert (splits.train.class_counts(), splits.val.class_counts()) == ([12, 12], [6, 6])
    assert list(splits.classes) == ["cool", "warm"]
    sizes = [path.stat().st_size for path in (tmp_path / "one").rglob("*.jpg")]
    assert 20_000 < np.mean(sizes) < 120_000
    pixels = {}
    for name in splits.classes:
        with Image.open(tmp_path / f"one/val/{name}/{0 if name == 'cool' else 1:04d}.jpg") as image:
            assert image.size == (SMALL.width, SMALL.height)
            pixels[name] = np.asarray(image).astype(float)
    means = {name: values.mean((0, 1)) for name, values in pixels.items()}
    assert means["warm"][0] - means["warm"][2] > means["cool"][0] - means["cool"][2]
    assert pixels["cool"].std() > 20


def test_photos_are_deterministic(tmp_path: Path) -> None:
    def digest(name: str) -> str:
        write_synthetic_photos(str(tmp_path / name), FEW)
        files = sorted((tmp_path / name).rglob("*.jpg"))
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    assert digest("one") == digest("two")


def test_large_photos_have_the_size_of_those_of_phones(tmp_path: Path) -> None:
    write_synthetic_photos(str(tmp_path / "large"), replace(LARGE, num_fields=1, counts={"train": 2, "val": 2}))
    for path in (tmp_path / "large").rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.size == (4032, 3024)
        assert 2.0 < path.stat().st_size * 8 / (4032 * 3024) < 2.4, "bits per pixel"
