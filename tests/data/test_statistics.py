from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexlab.config.data import data_config
from alexlab.config.resolve import fill_statistics
from alexlab.data.image_file import Decoding
from alexlab.data.scan import scan_folder
from alexlab.data.splits import Split
from alexlab.data.statistics import measure_statistics
from alexlab.errors import DataError
from support.images import write_images
from support.runs import TINY, plain


def write_correlated(root: Path, count: int, *, size: int = 40) -> Split:
    """Write images whose colours vary most along one direction."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    for index in range(count):
        along = generator.normal(0, 30, (size, size + index, 1)) * np.array([0.8, 0.6, 0.0])
        pixels = 128 + along + generator.normal(0, 4, along.shape)
        path = root / "ab"[index % 2] / f"{index}.png"
        Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(path)
    return scan_folder(str(root))


def test_statistics_match_the_pixels(tmp_path: Path) -> None:
    split = write_correlated(tmp_path / "x", 6)
    found = measure_statistics(split, decoding=Decoding())
    pixels = [np.asarray(Image.open(Path(split.root, path))).reshape(-1, 3) / 255 for path in split.paths]
    mean = np.mean([each.mean(0) for each in pixels], 0)
    covariance = np.mean([(each - mean).T @ (each - mean) / len(each) for each in pixels], 0)
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    np.testing.assert_allclose(found.std, np.sqrt(np.diag(covariance)), atol=1e-12)
    vectors = np.array(found.eigenvectors)
    np.testing.assert_allclose(vectors @ np.diag(found.eigenvalues) @ vectors.T, covariance, atol=1e-12)
    assert list(found.eigenvalues) == sorted(found.eigenvalues, reverse=True)
    np.testing.assert_allclose(vectors[:, 0], [0.8, 0.6, 0.0], atol=0.03)


def test_a_large_split_is_sampled_evenly(tmp_path: Path) -> None:
    split = write_correlated(tmp_path / "x", 10)
    assert measure_statistics(split, decoding=Decoding(), max_images=4).num_images == 4
    assert measure_statistics(split, decoding=Decoding(channels=1), max_images=99).num_images == 10
    assert len(measure_statistics(split, decoding=Decoding(channels=1)).mean) == 1
    assert measure_statistics(split, decoding=Decoding()).mean == pytest.approx(
        measure_statistics(split, decoding=Decoding(), max_images=5).mean, abs=0.01
    )


@pytest.mark.parametrize(("colour", "channel"), [((90, 20, 30), 0), ((None, None, 255), 2)])
def test_a_constant_channel_needs_data_std(tmp_path: Path, colour: tuple[int | None, ...], channel: int) -> None:
    ramp = np.arange(400, dtype=np.uint8).reshape(20, 20)
    pixels = np.stack([ramp if value is None else np.full_like(ramp, value) for value in colour], -1)
    root = write_images(tmp_path / "data", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    for path in (root / "train").rglob("*.png"):
        Image.fromarray(pixels).save(path)
    config = plain(*TINY, f"data.root={root}", f"data.cache_dir={tmp_path}", "data.mean=null", "data.std=null")
    splits = data_config(config).find_splits()
    message = rf"cannot measure data.std: the standard deviation of channel {channel} over 6 images is 0"
    with pytest.raises(DataError, match=message):
        fill_statistics(config, splits)
    config["data"]["std"] = [0.5]
    assert fill_statistics(config, splits)[0]["data"]["std"] == [0.5]


def test_the_standard_deviation_is_never_nan(tmp_path: Path) -> None:
    """For a single colour, the mean of squares minus the squared mean may be slightly negative."""
    for name, value in (("a", 77), ("b", 77)):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (31 + number, 17), (value, 101, 203)).save(tmp_path / name / f"{number}.png")
    found = measure_statistics(scan_folder(str(tmp_path)), decoding=Decoding())
    assert all(0 <= std < 1e-6 for std in found.std)
