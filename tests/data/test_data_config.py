import re
from pathlib import Path

import pytest
from PIL import Image

from alexlab.data.config import DataConfig
from alexlab.data.discovery import find_splits
from alexlab.errors import ConfigError
from support.images import write_images

KEYS = {"root": "x", "image_size": 64, "channels": 3, "mean": [0.1, 0.2, 0.6], "std": [1.0, 1.0, 1.0], "batch_size": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": ""}, "data.root must be a folder of images; set data.root=DIR"),
        ({"channels": 2}, "model.in_channels must be 1 (grey) or 3 (colour); got 2"),
        (
            {"mean": [0.5, 0.5]},
            "data.mean must be one or three numbers from 0 to 1 (pixels are divided by 255), or null to measure; got [0.5, 0.5]",
        ),
        (
            {"mean": [123.68, 116.78, 103.94]},
            "data.mean must be one or three numbers from 0 to 1 (pixels are divided by 255)",
        ),
        ({"std": [58.4]}, "data.std must be one or three numbers above 0 and at most 1 (pixels are divided by 255)"),
        ({"preview": -1}, "data.preview must be a number of images; got -1"),
        (
            {"std": [1.0, 0.0, 1.0]},
            "data.std must be one or three numbers above 0 and at most 1 (pixels are divided by 255), or null to measure; got [1.0, 0.0, 1.0]",
        ),
        (
            {"std": [float("nan")]},
            "data.std must be one or three numbers above 0 and at most 1 (pixels are divided by 255), or null to measure; got [nan]",
        ),
        ({"max_megapixels": 0}, "data.max_megapixels must be a positive number; got 0"),
        ({"intensity_range": [9, 1]}, "data.intensity_range must be null or two numbers, black and a larger white"),
        ({"sampler": "random"}, "data.sampler must be shuffle or balanced; got 'random'"),
        (
            {"generate": "mnist"},
            "data.generate must be null or one of digits, photographs, photographs_12mp; got 'mnist'",
        ),
        (
            {"root": None, "url": "x", "splits": {"train": "x", "val": None}},
            "data.splits must be null with data.url, whose splits are fixed; got {'train': 'x', 'val': None}",
        ),
        ({"batch_size": 0}, "data.batch_size must be an integer of at least 1; got 0"),
    ],
)
def test_invalid_values_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        DataConfig(**(KEYS | options))


def test_an_unused_test_fraction_is_noted(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 4, "b": 4})
    find_splits(str(tmp_path), val_fraction=0.25, test_fraction=0.0).write_manifest(tmp_path / "split.csv")
    config = DataConfig(**(KEYS | {"root": str(tmp_path / "split.csv"), "test_fraction": 0.1}))
    assert "data.test_fraction=0.1 is not used: only folders are split" in config.find_splits().notes[-1]


def test_three_numbers_are_averaged_for_one_channel() -> None:
    data = DataConfig(**(KEYS | {"channels": 1}))
    assert data.per_channel(data.mean) == pytest.approx([0.3])
    assert DataConfig(**KEYS).per_channel(KEYS["mean"]) == [0.1, 0.2, 0.6]


def test_generated_digits_are_written_once(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "digits"
    data = DataConfig(**(KEYS | {"root": str(root), "generate": "digits"}))
    splits = data.find_splits()
    assert [len(split) for _, split in splits.items()] == [1257, 270, 270]
    assert splits.classes == [str(digit) for digit in range(10)]
    assert all(min(split.class_counts()) >= 26 for _, split in splits.items())
    with Image.open(root / splits.train.paths[0]) as image:
        assert (image.size, image.mode, image.getextrema()) == ((8, 8), "L", (0, 239))  # 15 of 16 levels, scaled to 255
    written = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*.png"))
    assert data.find_splits().train.paths == splits.train.paths
    assert written == sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*.png"))
    assert [path.name for path in root.parent.iterdir()] == ["digits"]


def test_ranks_divide_the_cores_among_their_workers() -> None:
    assert DataConfig(**(KEYS | {"num_workers": 3})).workers_per_rank(2) == 3
    assert 1 <= DataConfig(**KEYS).workers_per_rank(1) <= 8
    assert DataConfig(**KEYS).workers_per_rank(10_000) == 1
