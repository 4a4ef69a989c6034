"""Confident learning: images whose label is probably wrong, by cleanlab (Northcutt, Jiang, Chuang, JAIR 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alexlab.errors import ConfigError, install_hint


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Suspicious images among N images of K classes.

    Args:
        suspects: indices of the suspicious images, int64 (M,), least probable label first.
        proposed: int64 (N,), most probable class of each image.
        quality: float64 (N,), probability of each label.
        joint: int64 (K, K), estimated number of images with label i (row) whose true class is j (column); rows sum to the number
            of images with that label.
    """

    suspects: np.ndarray
    proposed: np.ndarray
    quality: np.ndarray
    joint: np.ndarray

    @property
    def num_wrong(self) -> np.ndarray:
        """Estimated number of wrong labels of each class, int64 (K,)."""
        wrong: np.ndarray = self.joint.sum(1) - self.joint.diagonal()
        return wrong

    def pairs(self) -> list[tuple[int, int, int]]:
        """Return label, true class and estimated number of images for the pairs of classes, the most frequent first."""
        found = [
            (int(label), int(true), int(self.joint[label, true]))
            for label, true in np.argwhere(self.joint)
            if label != true
        ]
        return sorted(found, key=lambda pair: -pair[2])


def find_label_errors(labels: np.ndarray, probs: np.ndarray) -> LabelErrors:
    """Find labels that disagree with out-of-fold probabilities more than the errors of the nets explain.

    An image counts as class j if its probability of j is at least the mean over the images with label j. The counts estimate
    how many images of each label have each true class; as many of them, those with the largest margin, are suspicious: cleanlab's
    default `prune_by_noise_rate`.

    Args:
        labels: int64 (N,).
        probs: float64 (N, K), each predicted by nets that did not train on the image.

    Raises:
        ConfigError: if cleanlab is not installed.
    """
    check_cleanlab()
    from cleanlab.count import compute_confident_joint
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    joint = compute_confident_joint(labels, probs)
    suspects = find_label_issues(
        labels, probs, confident_joint=joint, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    quality = get_label_quality_scores(labels, probs)
    return LabelErrors(np.asarray(suspects, np.int64), probs.argmax(1), np.asarray(quality), joint)


def check_cleanlab() -> None:
    """Check that cleanlab is installed.

    Raises:
        ConfigError: if it is not.
    """
    from importlib.util import find_spec

    if find_spec("cleanlab") is None:
        raise ConfigError(f"action=labels needs the package cleanlab: {install_hint('labels')}")


def class_rows(errors: LabelErrors, labels: np.ndarray, classes: Sequence[str]) -> list[tuple[str, int, int, int]]:
    """Return for each class its name and the numbers of images, suspicious images and estimated wrong labels."""
    num_classes = len(classes)
    images = np.bincount(labels, minlength=num_classes)
    suspicious = np.bincount(labels[errors.suspects], minlength=num_classes)
    return list(zip(classes, images.tolist(), suspicious.tolist(), errors.num_wrong.tolist(), strict=True))
