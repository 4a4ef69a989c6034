"""Measures of the claims: each maps finished runs to a number with its interval, a verdict and plots."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from alexlab.errors import ConfigError
from alexlab.output.escape import plot_label
from alexlab.output.numbers import counted
from alexlab.pages.plots import SERIES, integer_ticks
from alexlab.papers.estimates import (
    MARGIN,
    UNDECIDED,
    difference_estimate,
    epochs_to_error,
    mean_estimate,
    ratio_estimate,
    share_estimate,
    verdict_of_difference,
    verdict_of_score,
)
from alexlab.papers.measurement import Measurement, points
from alexlab.papers.paper import Claim
from alexlab.records.plots import Panel, finish
from alexlab.records.results import RunResult
from alexlab.records.saved_predictions import read_predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET_ERROR = 0.25  # figure 1 of the 2012 paper
Groups = Mapping[str, Sequence[RunResult]]


def measure(claim: Claim, groups: Groups, others: Sequence[Sequence[float]] = ()) -> Measurement | None:
    """Return the result of a claim; None while a run that it needs is missing.

    Args:
        claim: the claim.
        groups: finished runs of each of its settings, in the order of their seeds.
        others: scores of the other settings of the same recipe, for the variance over seeds.
    """
    from alexlab.papers.net_measures import kernel_colours, neighbours

    kinds: dict[str, Callable[[Claim, Groups], Measurement | None]] = {
        "difference": partial(difference, others=others),
        "ten_crops": ten_crops,
        "average": average,
        "epochs_to_error": epochs_ratio,
        "kernel_colours": kernel_colours,
        "neighbours": neighbours,
        "score": score,
    }
    if not all(groups[name] for name in claim.settings):
        return None
    return kinds[claim.kind](claim, groups)


def top1(runs: Sequence[RunResult]) -> list[float]:
    """Return the top-1 accuracy of the best epoch of each run."""
    return [run.score("top1") or 0.0 for run in runs]


def difference(claim: Claim, groups: Groups, *, others: Sequence[Sequence[float]] = ()) -> Measurement:
    """Return by how much the top-1 accuracy of the first setting is above that of the second."""
    first, second = (top1(groups[name]) for name in claim.settings)
    estimate = difference_estimate(first, second, others)
    scores = dict(zip(claim.settings, (first, second), strict=True))
    means = [f"{name} {100 * statistics.fmean(values):.1f} %" for name, values in scores.items()]
    detail = f"Top-1 accuracy: {', '.join(means)}, means of {len(first)} and {counted(len(second), 'run')}."
    top5 = {
        name: [score for run in groups[name] if (score := run.score("top5")) is not None] for name in claim.settings
    }
    if all(top5.values()):
        detail += f" Top-5: {', '.join(f'{name} {100 * statistics.fmean(top5[name]):.1f} %' for name in top5)}."
    panel = _dots(scores)
    return Measurement(estimate, verdict_of_difference(estimate), points(estimate), detail, [panel])


def ten_crops(claim: Claim, groups: Groups) -> Measurement | None:
    """Return by how much ten crops are above the centre crop, paired by run."""
    runs = [run for run in groups[claim.settings[0]] if _view_scores(run)]
    if not runs:
        return None
    crops, centre = zip(*map(_view_scores, runs), strict=True)
    estimate = mean_estimate([a - b for a, b in zip(crops, centre, strict=True)])
    means = f"ten crops {100 * statistics.fmean(crops):.1f} %, centre {100 * statistics.fmean(centre):.1f} %"
    detail = f"Top-1 accuracy: {means}, means of {counted(len(runs), 'run')}; each run is compared with itself."
    panel = _dots({"ten crops": crops, "centre": centre})
    return Measurement(estimate, verdict_of_difference(estimate), points(estimate), detail, [panel])


def _view_scores(run: RunResult) -> tuple[float, ...]:
    """Return the top-1 accuracy over ten crops and of the centre of the same split; nothing if it was not measured."""
    scores = run.record["scores"]
    found = scores.get("ten_crop/top1"), scores.get("test/top1", scores.get("best/top1"))
    return () if None in found else found


def average(claim: Claim, groups: Groups) -> Measurement | None:
    """Return the accuracy of the averaged softmax minus the mean accuracy of the single nets, paired by image."""
    runs = groups[claim.settings[0]]
    kept = [each for run in runs if (each := read_predictions(run.folder, "val")) is not None]
    found = [each for each in kept if each.probs is not None]
    if claim.min_seeds > 1:
        found = found[: claim.min_seeds]  # as many nets as the paper averages
    if len(found) < 2:
        return None
    if any(not np.array_equal(each.paths, found[0].paths) for each in found):
        raise ConfigError(f"the runs of {claim.settings[0]} must have predicted the same images to be averaged")
    labels = found[0].labels
    probs = np.mean([each.probs for each in found if each.probs is not None], axis=0, dtype=np.float64)
    right = probs.argmax(1) == labels
    single = np.mean([each.correct for each in found], axis=0)
    estimate = mean_estimate((right - single).tolist())
    detail = (
        f"Top-1 accuracy: average of {len(found)} nets {100 * right.mean():.1f} %, one net {100 * single.mean():.1f} %; the "
        f"interval is over the {len(labels):,} images."
    )
    scores = [float(each.correct.mean()) for each in found]
    panel = _dots({"one net": scores, f"average of {len(found)}": [float(right.mean())]})
    return Measurement(estimate, verdict_of_difference(estimate), points(estimate), detail, [panel])


def training_errors(run: RunResult) -> list[float]:
    """Return the training error of each epoch."""
    return [1 - row["train/top1"] for row in run.epochs if "train/top1" in row]


def epochs_needed(run: RunResult) -> float:
    """Return the epochs until TARGET_ERROR; all epochs of the run if it did not get there."""
    errors = training_errors(run)
    needed = epochs_to_error(errors, TARGET_ERROR)
    return float(len(errors)) if needed is None else needed


def epochs_ratio(claim: Claim, groups: Groups) -> Measurement | None:
    """Return how many times as many epochs the second setting needs to TARGET_ERROR as the first, paired by seed.

    None if no seed has finished with both.
    """
    fast, slow = claim.settings
    by_seed = {name: {run.seed: run for run in groups[name]} for name in claim.settings}
    seeds = sorted(by_seed[fast].keys() & by_seed[slow].keys())
    if not seeds:
        return None
    needed = {name: [epochs_needed(by_seed[name][seed]) for seed in seeds] for name in claim.settings}
    estimate = ratio_estimate(needed[slow], needed[fast])
    text = f"{estimate.value:.1f} times"
    if estimate.low is not None and estimate.high is not None:
        text += f" ({estimate.low:.1f} to {estimate.high:.1f})"
    unreached = _unreached([run for name in claim.settings for run in groups[name]])
    rates = {name: groups[name][0].record["config"]["optimizer"]["lr"] for name in claim.settings}
    parts = [f"{name} {statistics.fmean(needed[name]):.1f} epochs at the rate {rates[name]:g}" for name in needed]
    detail = f"{'; '.join(parts)}, means of {counted(len(seeds), 'seed')}."
    if unreached:
        bound = "no ratio is known" if _unreached(groups[fast]) else "the ratio is a lower bound"
        detail += f" {counted(len(unreached), 'run')} ended above {TARGET_ERROR:.0%}, so {bound}."

    def draw(axes: "Axes") -> None:
        for number, name in enumerate(claim.settings):
            for run in groups[name]:
                errors = training_errors(run)
                middles = [epoch + 0.5 for epoch in range(len(errors))]
                axes.plot(middles, errors, color=SERIES[number], linewidth=1.4, label=plot_label(name))
        axes.axhline(TARGET_ERROR, linestyle=":", color=SERIES[9], linewidth=1)
        _legend(axes)
        finish(axes, "Epoch", "Training error")

    panel = Panel("Training error", "One line per seed; dotted: 25 %.", draw)
    verdict = UNDECIDED if _unreached(groups[fast]) else verdict_of_difference(estimate, 1.0)
    return Measurement(estimate, verdict, text, detail, [panel])


def _unreached(runs: Sequence[RunResult]) -> list[RunResult]:
    """Return the runs that ended above TARGET_ERROR."""
    return [run for run in runs if min(training_errors(run)) > TARGET_ERROR]


def score(claim: Claim, groups: Groups) -> Measurement | None:
    """Return the accuracy after the last validation, compared with the published one after as many epochs.

    None if a run was never validated.
    """
    assert isinstance(claim.published, Sequence)
    runs = groups[claim.settings[0]]
    validated = [[row for row in run.epochs if "val/top1" in row] for run in runs]
    if not all(validated):
        return None
    scores = [rows[-1]["val/top1"] for rows in validated]
    number = min(int(validated[0][-1]["epoch"]), len(claim.published))
    published = claim.published[number - 1]
    estimate = mean_estimate(scores) if len(runs) > 1 else share_estimate(scores[0], max(1, runs[0].num_val))
    text = f"{estimate.value:.3f}"
    if estimate.low is not None:
        text += f" ({estimate.low:.3f} to {estimate.high:.3f})"
    over = f"{len(runs)} seeds" if len(runs) > 1 else f"the {runs[0].num_val:,} images"
    detail = (
        f"After {counted(number, 'epoch')}: published {published:.3f}; the interval is over {over}, and its low end "
        f"must be at least {published - MARGIN:.3f}."
    )

    def draw(axes: "Axes") -> None:
        assert isinstance(claim.published, Sequence)
        for rows in validated:
            epochs, values = zip(*((row["epoch"], row["val/top1"]) for row in rows), strict=True)
            axes.plot(epochs, values, color=SERIES[0], marker="o", markersize=4, linewidth=1.4, label="ours")
        axes.plot(range(1, len(claim.published) + 1), claim.published, color=SERIES[1], linestyle="--", marker="o",
                  markersize=3, label="published")  # fmt: skip
        _legend(axes)
        integer_ticks(axes, 1, len(claim.published))
        finish(axes, "Epoch", "Test accuracy")

    panel = Panel("Test accuracy", "One line per seed.", draw)
    return Measurement(estimate, verdict_of_score(estimate, published), text, detail, [panel], published=published)


def _dots(groups: Mapping[str, Sequence[float]]) -> Panel:
    """Return a plot of the accuracy of each run by group, with a line at the mean of each group."""

    def draw(axes: "Axes") -> None:
        for number, scores in enumerate(groups.values()):
            spread = np.linspace(-0.12, 0.12, len(scores)) if len(scores) > 1 else [0.0]
            axes.plot(number + np.asarray(spread), scores, "o", color=SERIES[number], markersize=5)
            axes.hlines(statistics.fmean(scores), number - 0.3, number + 0.3, color=SERIES[number], linewidth=1.5)
        axes.set_xticks(range(len(groups)), [plot_label(name) for name in groups])
        axes.set_xlim(-0.6, len(groups) - 0.4)
        finish(axes, "", "Top-1 accuracy")

    return Panel("Top-1 accuracy", "A dot per run, a line at the mean.", draw, height=2.6)


def _legend(axes: "Axes") -> None:
    """Draw a legend with one entry per name."""
    lines, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, lines, strict=True))
    axes.legend(list(unique.values()), list(unique), frameon=False, fontsize=8.5)
