from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexlab.data.folder import Split, scan
from alexlab.data.image_file import Decoding
from alexlab.data.statistics import measure


def correlated(root: Path, count: int, *, size: int = 40) -> Split:
    """Pictures whose colours vary most along one direction."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    for index in range(count):
        along = generator.normal(0, 30, (size, size + index, 1)) * np.array([0.8, 0.6, 0.0])
        pixels = 128 + along + generator.normal(0, 4, along.shape)
        path = root / "ab"[index % 2] / f"{index}.png"
        Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(path)
    return scan(str(root))


def test_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    split = correlated(tmp_path / "x", 6)
    found = measure(split, decoding=Decoding())
    pixels = [np.asarray(Image.open(Path(split.root, path))).reshape(-1, 3) / 255 for path in split.paths]
    mean = np.mean([one.mean(0) for one in pixels], 0)
    covariance = np.mean([(one - mean).T @ (one - mean) / len(one) for one in pixels], 0)
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    np.testing.assert_allclose(found.std, np.sqrt(np.diag(covariance)), atol=1e-12)
    vectors = np.array(found.eigenvectors)
    np.testing.assert_allclose(vectors @ np.diag(found.eigenvalues) @ vectors.T, covariance, atol=1e-12)
    assert list(found.eigenvalues) == sorted(found.eigenvalues, reverse=True)
    np.testing.assert_allclose(vectors[:, 0], [0.8, 0.6, 0.0], atol=0.03)


def test_a_large_split_is_sampled_evenly(tmp_path: Path) -> None:
    split = correlated(tmp_path / "x", 10)
    assert measure(split, decoding=Decoding(), max_images=4).num_images == 4
    assert measure(split, decoding=Decoding(channels=1), max_images=99).num_images == 10
    assert len(measure(split, decoding=Decoding(channels=1)).mean) == 1
    assert measure(split, decoding=Decoding()).mean == pytest.approx(
        measure(split, decoding=Decoding(), max_images=5).mean, abs=0.01
    )
