"""Metrics of predictions on labelled images, and the CSV files that hold them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix as count_confusions
from sklearn.metrics import precision_recall_fscore_support

from alexlab.output.csv_files import write_csv
from alexlab.records.significance import wilson_interval

if TYPE_CHECKING:
    from alexlab.inference.predictions import Predictions

MAX_PAIRS = 20  # most frequent confusions that are listed
NUM_BINS = 15  # Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 4


class CalibrationBin(NamedTuple):
    """Images whose confidence falls into one bin.

    Args:
        confidence: their mean confidence.
        accuracy: fraction of them that is classified correctly.
        num_images: number of images.
    """

    confidence: float
    accuracy: float
    num_images: int


def compute_metrics(predictions: "Predictions") -> dict[str, Any]:
    """Return top-1 and top-5 accuracy and error with 95 % intervals, loss and calibration error, as fractions."""
    metrics, count = predictions.metrics, len(predictions.labels)
    result: dict[str, Any] = {"images": count, "loss": metrics["loss"]}
    for name in ("top1", "top5"):
        low, high = wilson_interval(round(metrics[name] * count), count)
        result |= {
            name: metrics[name],
            f"{name}_interval": [low, high],
            f"{name}_error": 1 - metrics[name],
            f"{name}_error_interval": [1 - high, 1 - low],
        }
    return result | {"calibration_error": calibration(predictions)[0]}


def confusion_matrix(predictions: "Predictions", num_classes: int) -> np.ndarray:
    """Return the counts of (label, predicted class), int64 (K, K): a row per label, a column per predicted class."""
    matrix: np.ndarray = count_confusions(
        predictions.labels, predictions.top_classes[:, 0], labels=np.arange(num_classes)
    )
    return matrix


def class_report(predictions: "Predictions", matrix: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each class its images, recall (its top-1 accuracy), precision, F1 and most frequent confusion.

    Fractions that are undefined, such as the recall of a class without images, are None.
    """
    precision, recall, f1, images = precision_recall_fscore_support(
        predictions.labels,
        predictions.top_classes[:, 0],
        labels=np.arange(len(names)),
        zero_division=np.nan,
    )
    errors = _without_diagonal(matrix)
    rows = []
    for label, name in enumerate(names):
        confused = int(errors[label].argmax())
        rows.append(
            {
                "class": name,
                "images": int(images[label]),
                "recall": _defined(recall[label]),
                "precision": _defined(precision[label]),
                "f1": _defined(f1[label]),
                "confused with": f"{names[confused]} ({errors[label, confused]})" if errors[label].any() else "",
            }
        )
    return rows


def confused_pairs(matrix: np.ndarray, names: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """Return the most frequent confusions: label, predicted class, number of images, fraction of the label's images."""
    errors = _without_diagonal(matrix)
    order = np.argsort(-errors, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = []
    for label, predicted in zip(*np.unravel_index(order, errors.shape), strict=True):
        count = int(errors[label, predicted])
        if count:
            pairs.append((names[label], names[predicted], count, count / int(matrix[label].sum())))
    return pairs


def calibration(predictions: "Predictions") -> tuple[float, list[CalibrationBin]]:
    """Return the expected calibration error, and the non-empty ones of 15 equal bins of confidence.

    Guo et al., arXiv 1706.04599, equations 2 and 3. As there, a bin includes its upper bound; torchmetrics includes the
    lower one.
    """
    confidence, correct = predictions.top_probs[:, 0].astype(np.float64), predictions.correct
    numbers = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    bins = []
    for number in np.unique(numbers):
        inside = numbers == number
        bins.append(CalibrationBin(float(confidence[inside].mean()), float(correct[inside].mean()), int(inside.sum())))
    error = sum(abs(part.confidence - part.accuracy) * part.num_images for part in bins) / len(correct)
    return error, bins


def write_predictions(predictions: "Predictions", names: Sequence[str], path: Path) -> None:
    """Write a row per image: path, label, whether the prediction is correct, and the top classes with probabilities."""
    width = predictions.top_classes.shape[1]
    columns = [f"{kind}{rank}" for rank in range(1, width + 1) for kind in ("class", "prob")]

    def rows() -> Iterator[list[Any]]:
        yield ["path", "label", "correct", *columns]
        for row, image in enumerate(predictions.paths):
            top = zip(predictions.top_classes[row].tolist(), predictions.top_probs[row].tolist(), strict=True)
            cells = [cell for number, prob in top for cell in (names[number], f"{prob:.6f}")]
            yield [image, names[predictions.labels[row]], int(predictions.correct[row]), *cells]

    write_csv(path, rows())


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a table as CSV; its columns are the keys of the first row."""
    write_csv(path, [list(rows[0]), *(row.values() for row in rows)])


def write_confusion_matrix(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Write the confusion matrix as CSV."""
    rows = ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    write_csv(path, [["label \\ predicted", *names], *rows])


def _without_diagonal(matrix: np.ndarray) -> np.ndarray:
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    return errors


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
