"""Plots of the scores of settings: against each key that differs, the size of the net, and the training time."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from alexlab.output.escape import plot_label
from alexlab.pages.plots import INK, MUTED, SERIES
from alexlab.records.optimized import OptimizedMetric, metric_title
from alexlab.records.plots import MAX_SERIES, Panel, finish
from alexlab.records.run_groups import RunGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TICKS = 8  # values of a key up to which each has a tick
MAX_LABEL = 34  # characters of a value on an axis
LOG_RATIO = 10  # largest by smallest value from which an axis is logarithmic
MIN_RATIO = 1.02  # sizes that differ less are not drawn


def effect_panels(effects: Mapping[str, Mapping[str, Sequence[float]]], metric: OptimizedMetric) -> list[Panel]:
    """Return for each key the score of each of its values.

    Args:
        effects: from `alexlab.records.run_groups.main_effects`.
        metric: what the scores are.
    """
    ends = [end for by_value in effects.values() for scores in by_value.values() for end in _ends(scores)]
    margin = 0.06 * (max(ends) - min(ends)) + 1e-3 if ends else 0.0
    limits = (min(ends) - margin, max(ends) + margin) if ends else (0.0, 1.0)
    return [_effect_panel(key, by_value, metric, limits) for key, by_value in effects.items()]


def _ends(scores: Sequence[float]) -> list[float]:
    """Return the scores and the ends of the bar of one standard deviation around their mean."""
    if len(scores) < 2:
        return list(scores)
    mean, std = statistics.mean(scores), statistics.stdev(scores)
    return [*scores, mean - std, mean + std]


def _effect_panel(
    key: str, by_value: Mapping[str, Sequence[float]], metric: OptimizedMetric, limits: tuple[float, float]
) -> Panel:
    name, scale = f"Effect of {key}", axis_scale(list(by_value))
    caption = "Small dots are runs, large dots their means, and bars ± one standard deviation."
    if not any(len(scores) > 1 for scores in by_value.values()):
        caption = "One run for each value."
    if scale is not None:
        by_number = sorted((float(value), value, scores) for value, scores in by_value.items())
        return Panel(
            name,
            caption,
            lambda axes: _draw_numbers(axes, by_number, scale, limits, (plot_label(key), plot_label(metric.title))),
        )
    ranked = sorted(by_value.items(), key=lambda item: statistics.mean(item[1]), reverse=metric.mode == "min")
    height = max(2.2, 0.9 + 0.28 * len(ranked))
    return Panel(name, caption, lambda axes: _draw_categories(axes, ranked, limits, plot_label(metric.title)), height)


def axis_scale(values: Sequence[str]) -> str | None:
    """Return the scale of an axis for the values of a key: linear or log, or None if they are categories.

    Numbers that span a factor of LOG_RATIO get a logarithmic axis, and are categories if zero or a negative number is among them.
    """
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    if not all(map(math.isfinite, numbers)):
        return None
    sizes = [abs(number) for number in numbers if number]
    if not sizes or max(sizes) < LOG_RATIO * min(sizes):
        return "linear"
    return "log" if min(numbers) > 0 else None


def _draw_numbers(
    axes: "Axes",
    by_number: Sequence[tuple[float, str, Sequence[float]]],
    scale: str,
    limits: tuple[float, float],
    labels: tuple[str, str],
) -> None:
    numbers = [number for number, *_ in by_number]
    for number, _, scores in by_number:
        _draw_scores(axes, number, scores)
    if len(numbers) <= MAX_TICKS:
        axes.plot(
            numbers, [statistics.mean(scores) for *_, scores in by_number], color=SERIES[0], linewidth=1, alpha=0.5
        )
    axes.set_xscale(scale)
    positions = [math.log(number) if scale == "log" else number for number in numbers]
    gaps = [right - left for left, right in itertools.pairwise(positions)]
    if len(numbers) <= MAX_TICKS and min(gaps) > 0.08 * (positions[-1] - positions[0]):
        axes.minorticks_off()
        names = [name for _, name, _ in by_number]
        slanted: Any = {"rotation": 25, "ha": "right"} if sum(map(len, names)) > 45 else {}
        axes.set_xticks(numbers, names, **slanted)
    elif scale == "log":
        _plain_log_ticks(axes)
    axes.set_ylim(*limits)
    finish(axes, *labels)


def _draw_categories(
    axes: "Axes", ranked: Sequence[tuple[str, Sequence[float]]], limits: tuple[float, float], label: str
) -> None:
    """Draw each value in a row of its own, best at the top; there is no order that a line could follow."""
    for position, (_, scores) in enumerate(ranked):
        _draw_scores(axes, position, scores, horizontal=True)
    labels = [name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…" for name, _ in ranked]
    axes.set_yticks(range(len(ranked)), [*map(plot_label, labels)])
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.set_xlim(*limits)
    axes.tick_params(axis="y", labelcolor=INK)
    finish(axes, label, "")


def _draw_scores(axes: "Axes", position: float, scores: Sequence[float], *, horizontal: bool = False) -> None:
    """Draw single scores, their mean, and a bar of a standard deviation."""
    across, along = ("y", "x") if horizontal else ("x", "y")
    mean = statistics.mean(scores)
    bar: dict[str, Any] = {across: position, along: mean}
    bar |= {f"{along}err": statistics.stdev(scores)} if len(scores) > 1 else {}
    axes.errorbar(**bar, fmt="o", color=INK, ecolor=MUTED, markersize=7, capsize=4, elinewidth=1.2)
    if len(scores) > 1:
        points: dict[str, Any] = {across: [position] * len(scores), along: scores}
        axes.plot(points["x"], points["y"], "o", color=SERIES[1], markersize=3.5, markeredgewidth=0, zorder=3)


def size_panels(groups: Sequence[RunGroup]) -> list[Panel]:
    """Return the score against the number of parameters and against the training time, each if the groups differ in it."""
    caption = (
        "Bars are ± one standard deviation over the seeds of a setting, or over the folds of a single seed."
        if any(group.std() for group in groups)
        else ""
    )
    if len(groups) > MAX_SERIES:
        caption = f"{caption} Grey: settings without a colour.".strip()
    panels = []
    score = "Accuracy" if not groups or groups[0].optimized.is_accuracy else metric_title(groups[0].optimized.key)
    for name, xlabel, values in (
        (f"{score} against size", "Parameters", [group.parameters for group in groups]),
        (f"{score} against training time", "Training time, s", [group.train_s for group in groups]),
    ):
        points = [(number, float(x), group) for number, (x, group) in enumerate(zip(values, groups, strict=True)) if x]
        sizes = [x for _, x, _ in points]
        if sizes and max(sizes) > MIN_RATIO * min(sizes):
            panels.append(Panel(name, caption, partial(_draw_points, points=points, xlabel=xlabel)))
    return panels


def _draw_points(axes: "Axes", points: Sequence[tuple[int, float, RunGroup]], xlabel: str) -> None:
    for number, x, group in points:
        mean, std = group.mean(), group.std()
        color = SERIES[number] if number < MAX_SERIES else MUTED
        bar = axes.errorbar(x, mean or 0, yerr=std, fmt="o", color=color, markersize=7, capsize=4, elinewidth=1.5)
        for artist in bar.get_children():
            artist.set_gid(f"s{number}")
    sizes = [x for _, x, _ in points]
    if max(sizes) >= LOG_RATIO * min(sizes):
        axes.set_xscale("log")
        _plain_log_ticks(axes)
    else:
        axes.xaxis.set_major_formatter(_compact)
    axes.margins(x=0.1, y=0.12)
    finish(axes, xlabel, plot_label(points[0][2].optimized.title))


def _plain_log_ticks(axes: "Axes") -> None:
    """Label 1, 2 and 5 of each decade, or the decades only if there are many, without powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_compact)


def _compact(value: float, _position: float = 0.0) -> str:
    """Return a number with up to four digits: 0.0001, 250, 3.66 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if letter == ' k' else size):.3g}{letter}"
    return f"{value:.4g}"
