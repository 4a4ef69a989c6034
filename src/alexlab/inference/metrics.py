"""Every number that is computed from what a net says of labelled images, and the tables that hold them. Imports no torch."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from alexlab.output.csv_files import write_csv

if TYPE_CHECKING:
    from alexlab.inference.predictions import Predictions

CONFIDENCE = 0.95
NUM_BINS = 15  # of the calibration: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 4


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a fraction (Wilson, "Probable inference", JASA 22, 1927)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (right + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(right * (count - right) / count + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def scores(found: "Predictions") -> dict[str, Any]:
    """top-1 and top-5 accuracy and error with their intervals, loss, calibration error; fractions, plain data."""
    count = len(found.labels)
    result: dict[str, Any] = {"images": count, "loss": found.loss}
    hits = {"top1": int(found.right.sum()), "top5": int((found.top == found.labels[:, None]).any(1).sum())}
    for name, right in hits.items():
        low, high = interval(right, count)
        result |= {
            name: right / count,
            f"{name}_interval": [low, high],
            f"{name}_error": 1 - right / count,
            f"{name}_error_interval": [1 - high, 1 - low],
        }
    return result | {"calibration_error": calibration(found)[0]}


def confusion(found: "Predictions", num_classes: int) -> np.ndarray:
    """How often each class was taken for each class: int64 (K, K), a row for each label, a column for each first answer."""
    pairs = found.labels * num_classes + found.top[:, 0]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(matrix: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class its images, recall (its top-1 accuracy), precision and F1, and what it is taken for most often."""
    rows = []
    for label, name in enumerate(names):
        images, right, said = int(matrix[label].sum()), int(matrix[label, label]), int(matrix[:, label].sum())
        others = matrix[label].copy()
        others[label] = 0
        mistaken = int(others.argmax())
        rows.append(
            {
                "class": name,
                "images": images,
                "recall": right / images if images else None,
                "precision": right / said if said else None,
                "f1": 2 * right / (images + said) if images + said else None,
                "mistaken for": f"{names[mistaken]} ({others[mistaken]})" if others[mistaken] else "",
            }
        )
    return rows


def confused_pairs(matrix: np.ndarray, names: Sequence[str], limit: int = 20) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes: the class, what it was taken for, how often, and which part of its images."""
    others = matrix.copy()
    np.fill_diagonal(others, 0)
    order = np.argsort(-others, axis=None, kind="stable")[:limit]
    found = []
    for label, answer in zip(*np.unravel_index(order, others.shape), strict=True):
        count = int(others[label, answer])
        if count:
            found.append((names[label], names[answer], count, count / int(matrix[label].sum())))
    return found


def calibration(found: "Predictions") -> tuple[float, list[tuple[float, float, int]]]:
    """The expected calibration error, and for each of 15 equal bins of confidence its mean, its accuracy and its images.

    Guo et al., arXiv 1706.04599, equations 2 and 3; empty bins are left out.
    """
    confidence, right = found.probs[:, 0].astype(np.float64), found.right
    places = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    bins, error = [], 0.0
    for place in range(NUM_BINS):
        inside = places == place
        count = int(inside.sum())
        if count:
            said, was = float(confidence[inside].mean()), float(right[inside].mean())
            bins.append((said, was, count))
            error += abs(said - was) * count / len(right)
    return error, bins


def write_predictions(found: "Predictions", names: Sequence[str], path: Path) -> None:
    """A row for each image: its path, its label, and the first answers with their probabilities."""
    width = found.top.shape[1]
    columns = [f"{kind}{place}" for place in range(1, width + 1) for kind in ("answer", "prob")]

    def rows() -> Iterator[list[Any]]:
        yield ["path", "label", "right", *columns]
        for number, image in enumerate(found.paths):
            said = [
                cell
                for answer, prob in zip(found.top[number].tolist(), found.probs[number].tolist(), strict=True)
                for cell in (names[answer], f"{prob:.6f}")
            ]
            yield [image, names[found.labels[number]], int(found.right[number]), *said]

    write_csv(path, rows())


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A table as CSV."""
    write_csv(path, [list(rows[0]), *(row.values() for row in rows)])


def write_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """The confusion matrix as CSV."""
    rows = ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    write_csv(path, [["label \\ answer", *names], *rows])
