"""Predictions that a run saves for each validation and test image: those of its best checkpoint, in float32."""

import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from alexlab.errors import ConfigError
from alexlab.records.atomic import write_atomic
from alexlab.records.layout import PREDICTIONS

MAX_PROBS = 60_000_000  # images x classes up to which all probabilities are kept, ImageNet among them: 120 MB


@dataclass(frozen=True, eq=False)
class SavedPredictions:
    """Predictions on N images of K classes, in the order of the split; unreadable images are left out.

    Args:
        paths: str (N,), relative to `data.root`, or what else names an image there: `val/12` for item 12 of an own dataset.
        classes: str (K,), names of the classes.
        labels: int64 (N,).
        top_classes: int64 (N, min(5, K)), most probable class first.
        top_probs: float32 (N, min(5, K)), probabilities of `top_classes`.
        label_prob: float32 (N,), probability of the label.
        probs: float16 (N, K), probabilities of all classes; None if N x K exceeds MAX_PROBS.
    """

    paths: np.ndarray
    classes: np.ndarray
    labels: np.ndarray
    top_classes: np.ndarray
    top_probs: np.ndarray
    label_prob: np.ndarray
    probs: np.ndarray | None = None

    def __post_init__(self) -> None:
        num_images, num_classes = len(self.paths), len(self.classes)
        top = (num_images, min(5, num_classes))
        shapes = [getattr(self, name).shape for name in ("labels", "label_prob", "top_classes", "top_probs")]
        if shapes != [(num_images,), (num_images,), top, top]:
            raise ValueError(f"it has {num_images} images of {num_classes} classes and arrays of the shapes {shapes}")
        if self.probs is not None and self.probs.shape != (num_images, num_classes):
            raise ValueError(f"probs has the shape {self.probs.shape} instead of {(num_images, num_classes)}")
        for name in ("labels", "top_classes"):
            indices = getattr(self, name)
            if indices.dtype.kind != "i" or ((indices < 0) | (indices >= num_classes)).any():
                raise ValueError(f"{name} must be integers from 0 to {num_classes - 1}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image, int64 (N,)."""
        top: np.ndarray = self.top_classes[:, 0]
        return top

    @property
    def correct(self) -> np.ndarray:
        """Mask of the images whose most probable class is the label, bool (N,)."""
        correct: np.ndarray = self.predicted == self.labels
        return correct

    def write(self, run_dir: Path, split: str) -> None:
        """Write the file of a split, `val` or `test`.

        Raises:
            DiskError: if it cannot be written.
        """
        arrays = {name: value for name, value in asdict(self).items() if value is not None}
        size = sum(value.nbytes for value in arrays.values())
        write_atomic(_path(run_dir, split), lambda file: np.savez_compressed(file, **arrays), size=size)


def read_predictions(run_dir: Path, split: str, *, all_classes: bool = True) -> SavedPredictions | None:
    """Return the predictions of a run on a split; None if it has none.

    Args:
        run_dir: the run folder.
        split: `val` or `test`.
        all_classes: read `probs`, which takes most of the time.

    Raises:
        ConfigError: if the file is corrupt.
    """
    path = _path(run_dir, split)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # NumPy leaves a corrupt file open
            return SavedPredictions(**{name: arrays[name] for name in arrays if all_classes or name != "probs"})
    except (ValueError, TypeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is corrupt: {' '.join(str(error).split())}") from error


def _path(run_dir: Path, split: str) -> Path:
    return run_dir / PREDICTIONS / f"{split}.npz"
