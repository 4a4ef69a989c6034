"""Panels, which a page can arrange by its width, and the learning curves of settings."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alexlab.output.escape import plot_label
from alexlab.pages.plots import SERIES, integer_ticks, new_figure, upper_limit
from alexlab.records.optimized import OptimizedMetric
from alexlab.records.run_groups import RunGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SERIES = len(SERIES)  # groups with a colour of their own, best first; curves are drawn of these only
MAX_MARKERS = 15  # epochs up to which each has a marker
SIZE = (5.2, 3.3)  # inches


@dataclass(frozen=True)
class Panel:
    """One plot.

    Args:
        name: heading.
        caption: sentence that explains it.
        draw: function that draws it.
        height: height in inches.
    """

    name: str
    caption: str
    draw: "Callable[[Axes], None]"
    height: float = SIZE[1]

    def figure(self) -> "Figure":
        """Return the plot as a figure of its own, without a title."""
        figure = new_figure(figsize=(SIZE[0], self.height))
        self.draw(figure.subplots())
        return figure


def sheet(panels: Sequence[Panel], groups: Sequence[RunGroup] = ()) -> "Figure":
    """Return the panels next to each other, with their names and a legend of the groups below them."""
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = rows * max(panel.height for panel in panels)
    figure = new_figure(figsize=(SIZE[0] * columns, height + 0.2 * len(groups)))
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for panel in panels:
        axis = next(axes)
        panel.draw(axis)
        axis.set_title(plot_label(panel.name))
    for axis in axes:
        axis.set_axis_off()
    if groups:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=SERIES[number]) for number in range(len(groups))]
        names = [plot_label(group.name) for group in groups]
        figure.legend(lines, names, loc="outside lower left", frameon=False, fontsize=8.5)
    return figure


def curve_panels(groups: Sequence[RunGroup]) -> list[Panel]:
    """Return the loss and the optimized metric, or else top-1, against the epoch.

    Lines are the mean of each group, bands the range of its runs; training is dashed.
    """
    groups = groups[:MAX_SERIES]
    score = next((group.optimized for group in groups if group.optimized.key != "loss"), OptimizedMetric())
    epochs = {row["epoch"] for group in groups for run in group.runs for row in run.epochs}
    lines = "Solid: validation, dashed: training."
    if len(epochs) == 1:
        lines = "Large dots: validation, small dots: training."
    elif any(len(group.runs) > 1 for group in groups):
        lines += " Lines are means over the runs of a setting, and bands their range."
    panels = []
    for metric, name in (("loss", "Loss"), (score.key, score.title)):
        curves = [
            (number, split, points)
            for number, group in enumerate(groups)
            for split in ("train", "val")
            if (points := _points(group, split, metric))
        ]
        if not curves:
            continue
        top = upper_limit([[sum(values) / len(values) for values in points.values()] for *_, points in curves])
        largest = max(max(values) for *_, points in curves for values in points.values())
        caption = lines if top is None else f"{lines} Cut off at {top:.2g}; the largest value is {largest:.3g}."

        def draw(axes: "Axes", curves: Any = curves, name: str = name, top: float | None = top) -> None:
            for number, split, points in curves:
                _draw_curve(axes, points, number=number, is_train=split == "train")
            epochs = [epoch for *_, points in curves for epoch in points]
            integer_ticks(axes, min(epochs), max(epochs))
            if top is not None:
                axes.set_ylim(top=top)
            finish(axes, "Epoch", plot_label(name))

        panels.append(Panel(name, caption, draw))
    return panels


def _points(group: RunGroup, split: str, metric: str) -> dict[int, list[float]]:
    """Return the finite values of all runs of a group by epoch, counted from 1."""
    points: dict[int, list[float]] = {}
    for run in group.runs:
        for row in run.epochs:
            value = row.get(f"{split}/{metric}")
            if value is not None and math.isfinite(value):
                points.setdefault(int(row["epoch"]), []).append(value)
    return dict(sorted(points.items()))


def _draw_curve(axes: "Axes", points: Mapping[int, Sequence[float]], *, number: int, is_train: bool) -> None:
    means = [sum(values) / len(values) for values in points.values()]
    marker = "o" if len(points) <= MAX_MARKERS else ""
    style: dict[str, Any] = {"color": SERIES[number], "gid": f"s{number}"}
    if is_train:
        axes.plot(
            list(points), means, linestyle="--", linewidth=1.0, alpha=0.75, marker=marker, markersize=2.5, **style
        )
        return
    axes.plot(list(points), means, linewidth=1.7, marker=marker, markersize=4, **style)
    if any(len(values) > 1 for values in points.values()):
        low, high = ([bound(values) for values in points.values()] for bound in (min, max))
        axes.fill_between(list(points), low, high, alpha=0.13, linewidth=0, **style)


def finish(axes: "Axes", xlabel: str, ylabel: str) -> None:
    """Label the axes and draw a grid."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid()
