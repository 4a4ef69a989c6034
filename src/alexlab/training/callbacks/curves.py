"""Plot of the learning curves of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alexlab.output.escape import plot_label
from alexlab.pages.plots import INK, SERIES, integer_ticks, new_figure, png, upper_limit
from alexlab.records.atomic import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_MARKERS = 30  # epochs up to which each has a marker
VAL, TRAIN, TOP5, RATE = SERIES[0], SERIES[1], SERIES[5], SERIES[6]


def draw_curves(
    rows: Sequence[dict[str, float]], path: Path, *, title: str, metric: str = "top1", mode: str = "max"
) -> None:
    """Plot loss, accuracy and learning rate over the epochs as PNG, with the best epoch marked.

    Args:
        rows: metrics by name, and `epoch` counted from 1 and `lr`, of each epoch.
        path: file to write.
        title: name of the run.
        metric: validation metric that decides which epoch is the best; drawn with the accuracies unless it is the loss.
        mode: `max` if a higher value of it is better, else `min`.
    """
    score = metric if metric != "loss" else "top1"
    name = {"top1": "Top-1"}.get(score, score)
    figure = new_figure(figsize=(13, 3.9))
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(5, 5, 3))
    figure.suptitle(plot_label(title), x=0.01, ha="left", fontsize=11, color=INK)
    _draw(loss, rows, {"train/loss": ("Training", TRAIN, "--"), "val/loss": ("Validation", VAL, "-")}, "Loss")
    lines = {f"train/{score}": (f"{name}, training", TRAIN, "--"), f"val/{score}": (f"{name}, validation", VAL, "-")}
    if score == "top1" and any(row.get("val/top5", 1.0) < 1 for row in rows):  # with few classes it is always 1
        lines["val/top5"] = ("Top-5, validation", TOP5, "-")
    _draw(accuracy, rows, lines, f"{name} accuracy" if score == "top1" else name)
    _draw(rate, rows, {"lr": ("", RATE, "-")}, "Learning rate")
    limit = upper_limit([[row[key] for row in rows if key in row] for key in ("train/loss", "val/loss")])
    if limit is not None:
        loss.set_ylim(top=limit)
    if score == "top1":
        accuracy.set_ylim(0, 1.02)
    _mark_best(loss if metric == "loss" else accuracy, rows, f"val/{metric}", mode)
    for axes in (loss, accuracy):
        if axes.lines:  # empty if the run ended before its first validation
            axes.legend(frameon=False, fontsize=8.5)
    write_atomic(path, png(figure))


def _draw(axes: "Axes", rows: Sequence[dict[str, float]], lines: dict[str, tuple[str, str, str]], name: str) -> None:
    for key, (label, color, style) in lines.items():
        points = [(row["epoch"], row[key]) for row in rows if key in row]
        if points:
            marker = "o" if len(points) <= MAX_MARKERS else ""
            axes.plot(*zip(*points, strict=True), style, color=color, marker=marker, markersize=3.5, label=label)
    axes.set(xlabel="Epoch", ylabel=name)
    axes.grid()
    if rows:
        integer_ticks(axes, int(rows[0]["epoch"]), int(rows[-1]["epoch"]))


def _mark_best(axes: "Axes", rows: Sequence[dict[str, float]], key: str, mode: str) -> None:
    """Mark the best epoch with its value; of equal values, that with the lower loss."""
    found = [row for row in rows if row.get(key, float("nan")) == row.get(key)]  # without NaN
    if not found:
        return
    sign = -1 if mode == "max" else 1
    best = min(found, key=lambda row: (sign * row[key], row.get("val/loss", 0.0)))
    x, y = best["epoch"], best[key]
    axes.axvline(x, color=INK, linewidth=0.8, linestyle=":")
    axes.plot(x, y, "o", color=VAL, markersize=8, markeredgecolor="#ffffff", markeredgewidth=1.5, zorder=4)
    axes.set_title(f"best: epoch {x:.0f}, {y:.4f}", loc="right", fontsize=9)  # above the curves, so that it hides none
