"""Plots of an evaluation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from alexlab.inference.metrics import CalibrationBin
from alexlab.output.escape import plot_label, shortened
from alexlab.pages.plots import INK, MUTED, SERIES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 30  # of the confusion matrix; with more, those that are confused most
MAX_COUNTS = 20  # largest number of classes for which each cell shows its count
MAX_NAME = 24  # characters of a class name on an axis
MIN_IMAGES = 10  # fewer images in a bin of confidence give a hollow point


def confused_classes(matrix: np.ndarray) -> np.ndarray:
    """Return the sorted indices of the classes to draw, int64: all, or those of the most frequent confusions.

    Args:
        matrix: confusion matrix (K, K).
    """
    if len(matrix) <= MAX_CLASSES:
        return np.arange(len(matrix))
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    chosen: list[int] = []
    for cell in np.argsort(-errors, axis=None, kind="stable"):
        pair = [number for number in divmod(int(cell), len(matrix)) if number not in chosen]
        if not errors.flat[cell] or len(chosen) + len(pair) > MAX_CLASSES:
            break
        chosen += pair
    return np.sort(np.array(chosen, np.int64))


def confusion_plot(matrix: np.ndarray, names: Sequence[str]) -> "Figure":
    """Return a plot of the confusion matrix (K, K), each row as fractions of its class; see `confused_classes`."""
    from matplotlib.patches import Rectangle

    classes = confused_classes(matrix)
    fractions = (matrix / np.maximum(1, matrix.sum(1, keepdims=True)))[np.ix_(classes, classes)]
    counts, count = matrix[np.ix_(classes, classes)], len(classes)
    side = 2.6 + 0.3 * count
    figure = new_figure(figsize=(side, side - 0.2))
    axes = figure.subplots()
    for row, column in np.argwhere(counts):
        fraction = fractions[row, column]
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=SERIES[0], alpha=0.06 + 0.94 * fraction))
        if len(matrix) <= MAX_COUNTS:
            color = "white" if fraction > 0.55 else INK
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=8)
    labels = [plot_label(shortened(names[number], MAX_NAME)) for number in classes]
    axes.set_xticks(range(count), labels)
    if max(map(len, labels)) > 3:
        axes.tick_params("x", rotation=60)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), labels)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set(
        xlabel="predicted class", ylabel="label", xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal"
    )
    return figure


def calibration_plot(bins: Sequence[CalibrationBin]) -> "Figure":
    """Return a reliability diagram: accuracy against confidence, and the number of images per bin below it.

    The area of a point grows with the number of its images; it is hollow if they are fewer than `MIN_IMAGES`.
    """
    figure = new_figure(figsize=(5.2, 5.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1)
    largest = max(part.num_images for part in bins)
    for part in bins:
        hollow = part.num_images < MIN_IMAGES
        size = 18 + 200 * part.num_images / largest
        upper.scatter(
            part.confidence,
            part.accuracy,
            22 if hollow else size,
            facecolor="none" if hollow else SERIES[0],
            edgecolor=SERIES[0],
        )
    upper.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    lower.bar([part.confidence for part in bins], [part.num_images for part in bins], width=0.04)
    lower.set(xlabel="confidence", ylabel="images", xlim=(-0.02, 1.02))
    for axes in (upper, lower):
        axes.grid()
    return figure
