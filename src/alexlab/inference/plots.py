"""Plots of an evaluation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from alexlab.inference.metrics import CalibrationBin
from alexlab.output.escape import plot_label
from alexlab.pages.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NAMES = 40  # maximum number of classes whose names label the axes
MAX_COUNTS = 20  # largest number of classes for which each cell shows its count


def confusion_plot(matrix: np.ndarray, names: Sequence[str]) -> "Figure":
    """Return a plot of the confusion matrix (K, K), each row as fractions of its class."""
    count = len(names)
    side = min(11.0, 3.5 + 0.28 * count)
    figure = new_figure(figsize=(side + 0.8, side))
    axes = figure.subplots()
    fractions = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the images of the class")
    axes.set(xlabel="predicted class", ylabel="label")
    if count <= MAX_NAMES:
        labels = [*map(plot_label, names)]
        axes.set_xticks(range(count), labels, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(count), labels, fontsize=8)
    if count <= MAX_COUNTS:
        for row, column in np.argwhere(matrix):
            color = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
    return figure


def calibration_plot(error: float, bins: Sequence[CalibrationBin]) -> "Figure":
    """Return a reliability diagram: accuracy against confidence, and the number of images per bin below it."""
    figure = new_figure(figsize=(5.2, 5.4))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    confidence = [part.confidence for part in bins]
    upper.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    upper.plot(confidence, [part.accuracy for part in bins], "o-", markersize=4)
    upper.set(ylabel="accuracy", ylim=(0, 1), title=f"expected calibration error {error:.4f}")
    lower.bar(confidence, [part.num_images for part in bins], width=0.05)
    lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure
