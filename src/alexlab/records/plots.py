"""Plots that compare runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alexlab.output.escape import plot_label
from alexlab.pages.plots import new_figure
from alexlab.records.compare import RunGroup, mean_or_none

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CURVES = 12  # maximum number of groups in the plot of the curves, best first
MAX_TICKS = 6  # with more values than this, a numeric key gets a continuous axis


def curves_plot(groups: Sequence[RunGroup]) -> "Figure | None":
    """Plot loss and top-1 against the epoch: the mean of each group with the range of its seeds, training dashed.

    Returns:
        The figure, or None if no run has a validated epoch.
    """
    groups = groups[:MAX_CURVES]
    if not any(run.epochs for group in groups for run in group.runs):
        return None
    figure, axes = _figure_with_axes(2, height=4.5)
    for axis, metric in zip(axes, ("loss", "top1"), strict=True):
        for number, group in enumerate(groups):
            for split in ("train", "val"):
                _plot_curve(axis, group, split, metric, color=f"C{number % 10}")
        axis.set(xlabel="epoch", ylabel={"loss": "loss", "top1": "top-1 accuracy"}[metric])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7, title="solid: val, dashed: train", title_fontsize=7)
    return figure


def effects_plot(effects: dict[str, dict[str, list[float]]]) -> "Figure | None":
    """Plot for each key the mean top-1 of each of its values, with the groups as points.

    Args:
        effects: from `alexlab.records.compare.main_effects`.

    Returns:
        The figure, or None without keys.
    """
    if not effects:
        return None
    figure, axes = _figure_with_axes(min(4, len(effects)))
    for axis, (key, scores) in zip(axes, effects.items(), strict=False):
        names = sorted(scores, key=_numbers_first)
        numbers = [_numbers_first(name) for name in names]
        if len(names) > MAX_TICKS and all(kind == 0 for kind, _, _ in numbers):
            points = [(number, score) for _, number, name in numbers for score in scores[name]]
            axis.plot(*zip(*points, strict=True), "o", color="C0")
            (_, low, _), (_, high, _) = numbers[0], numbers[-1]
            axis.set_xscale("log" if low > 0 and high > 10 * low else "linear")
        else:
            for position, name in enumerate(names):
                axis.plot([position] * len(scores[name]), scores[name], "o", color="C0", alpha=0.4, markersize=4)
            axis.plot(range(len(names)), [mean_or_none(scores[name]) for name in names], "o-", color="C1")
            axis.set_xticks(range(len(names)), [*map(plot_label, names)], rotation=20, fontsize=8)
        axis.set(title=plot_label(key), ylabel="val/top1")
        axis.grid(alpha=0.3)
    return figure


def scatter_plot(groups: Sequence[RunGroup]) -> "Figure | None":
    """Plot accuracy against the number of parameters and against the training time; None without groups."""
    if not groups:
        return None
    figure, axes = _figure_with_axes(2)
    for axis, measure in zip(axes, ("parameters", "training time, s"), strict=True):
        for group in groups:
            x = group.runs[0].record.get("parameters") if measure == "parameters" else group.train_s
            if x:
                label = plot_label(group.name)
                axis.errorbar(x, group.mean(), yerr=group.std() or 0, fmt="o", capsize=3, label=label)
        axis.set(xlabel=measure, ylabel="val/top1", xscale="log" if measure == "parameters" else "linear")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    return figure


def _figure_with_axes(columns: int, height: float = 4.0) -> tuple["Figure", Any]:
    figure = new_figure(figsize=(5.2 * columns, height))
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _plot_curve(axis: Any, group: RunGroup, split: str, metric: str, *, color: str) -> None:
    by_epoch: dict[int, list[float]] = {}
    for run in group.runs:
        for row in run.epochs:
            if f"{split}/{metric}" in row:
                by_epoch.setdefault(int(row["epoch"]) + 1, []).append(row[f"{split}/{metric}"])
    epochs = sorted(by_epoch)
    means = [sum(by_epoch[epoch]) / len(by_epoch[epoch]) for epoch in epochs]
    label, style = (plot_label(group.name), "-") if split == "val" else (None, "--")
    axis.plot(epochs, means, style, color=color, label=label, linewidth=1.2)
    if split == "val" and len(group.runs) > 1:
        low, high = ([bound(by_epoch[epoch]) for epoch in epochs] for bound in (min, max))
        axis.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)


def _numbers_first(text: str) -> tuple[int, float, str]:
    """Return a sort key that orders numbers by value and puts other text after them."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
