"""Files of saved predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexlab.errors import ConfigError
from alexlab.records.saved_predictions import SavedPredictions, read_predictions


def kept(**changes: Any) -> SavedPredictions:
    columns: dict[str, Any] = {
        "paths": np.array(["a/1.png", "b/\udcff 2.png", "b/長.png"]),
        "classes": np.array(["a", "b"]),
        "labels": np.array([0, 1, 1]),
        "top_classes": np.array([[0, 1], [0, 1], [1, 0]]),
        "top_probs": np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32),
        "label_prob": np.array([0.9, 0.2, 0.7], np.float32),
        "probs": np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], np.float16),
    }
    return SavedPredictions(**columns | changes)


@pytest.mark.parametrize("probs", ["all", "top-5 only"])
def test_predictions_are_read_as_they_were_written(probs: str, tmp_path: Path) -> None:
    written = kept() if probs == "all" else kept(probs=None)
    written.write(tmp_path, "val")
    read = read_predictions(tmp_path, "val")
    assert read is not None and read.correct.tolist() == [True, False, True]
    for name, value in vars(written).items():
        np.testing.assert_array_equal(getattr(read, name), value)
    assert (read.probs is None) == (probs == "top-5 only")
    assert read_predictions(tmp_path, "test") is None
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["val.npz"]


def test_a_flipped_byte_is_no_traceback(tmp_path: Path) -> None:
    """zipfile and zlib raise errors of several kinds; a byte that no array depends on may pass."""
    kept().write(tmp_path, "val")
    path, refused = tmp_path / "predictions/val.npz", 0
    content = path.read_bytes()
    for position in range(0, len(content), 5):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            read_predictions(tmp_path, "val")
        except ConfigError:
            refused += 1
    assert refused > len(content) / 5 / 2


def test_corrupt_files_are_refused(tmp_path: Path) -> None:
    kept().write(tmp_path, "val")
    path = tmp_path / "predictions/val.npz"
    content = path.read_bytes()
    arrays = vars(kept())
    for bad in (
        lambda: path.write_bytes(content[: len(content) // 2]),
        lambda: path.write_bytes(b"x"),
        lambda: np.savez(path, **{**arrays, "probs": np.array([{}], dtype=object)}),
        lambda: np.savez(path, **{**arrays, "unknown": np.zeros(1)}),
        lambda: np.savez(path, **{**arrays, "labels": np.array([0, 1])}),
        lambda: np.savez(path, **{**arrays, "labels": np.array([0, 1, 2])}),
        lambda: np.savez(path, **{**arrays, "probs": np.zeros((3, 3))}),
        lambda: np.savez(path, labels=arrays["labels"]),
    ):
        bad()
        with pytest.raises(ConfigError, match=r"predictions/val.npz is corrupt: "):
            read_predictions(tmp_path, "val")
