"""The pictures of an evaluation. Imports no torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from alexlab.output.escape import plot_label

MAX_NAMES = 40  # classes whose names stand beside the matrix
MAX_COUNTS = 20  # classes whose counts stand inside it


def confusion_plot(matrix: np.ndarray, names: Sequence[str]) -> Any:
    """The confusion matrix (K, K), each row as parts of its class."""
    from matplotlib.figure import Figure

    count = len(names)
    side = min(11.0, 3.5 + 0.28 * count)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    parts = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="part of the images of the class")
    axes.set(xlabel="answer", ylabel="class")
    if count <= MAX_NAMES:
        labels = [*map(plot_label, names)]
        axes.set_xticks(range(count), labels, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(count), labels, fontsize=8)
    if count <= MAX_COUNTS:
        for row, column in np.argwhere(matrix):
            color = "white" if parts[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
    return figure


def calibration_plot(error: float, bins: Sequence[tuple[float, float, int]]) -> Any:
    """Accuracy over confidence, and how many images there are of each confidence."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    upper.plot([said for said, _, _ in bins], [was for _, was, _ in bins], "o-", markersize=4)
    upper.set(ylabel="accuracy", ylim=(0, 1), title=f"calibration error {error:.4f}")
    lower.bar([said for said, _, _ in bins], [count for _, _, count in bins], width=0.05)
    lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure
