"""Ranking of settings: the best one, the differences of the others to it, and the verdict."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alexlab.output.numbers import listed
from alexlab.records.image_scores import setting_scores
from alexlab.records.optimized import OptimizedMetric, metric_label
from alexlab.records.results import common_metric, obstacle
from alexlab.records.run_groups import RunGroup
from alexlab.records.significance import (
    PAIRED_T,
    RESAMPLES,
    WELCH,
    Difference,
    corrected,
    image_differences,
    t_difference,
)


@dataclass(frozen=True)
class Ranking:
    """Settings with scores, best first, those that lack folds last.

    Args:
        groups: the settings; in their own order if they cannot be ranked.
        metric: their optimized metric; None if they cannot be ranked: it differs, or their classes do.
        differences: difference of each setting to the first, with a p-value corrected for their number; None for the first,
            and for those that cannot be tested.
    """

    groups: list[RunGroup]
    metric: OptimizedMetric | None
    differences: list[Difference | None]

    @property
    def tied(self) -> list[RunGroup]:
        """The first setting, and those that were tested and are not significantly worse."""
        pairs = zip(self.groups, self.differences, strict=True)
        return [
            *self.groups[:1],
            *(group for group, difference in pairs if difference is not None and not difference.is_significant),
        ]

    @property
    def untested(self) -> list[RunGroup]:
        """The settings after the first one whose difference to it cannot be tested."""
        pairs = zip(self.groups[1:], self.differences[1:], strict=True)
        return [group for group, difference in pairs if difference is None]

    @property
    def is_clear(self) -> bool:
        """True if the first setting is significantly better than each other one."""
        return len(self.groups) > 1 and len(self.tied) == 1 and not self.untested


def rank_groups(groups: Sequence[RunGroup]) -> Ranking:
    """Rank settings by the mean of their optimized metric, and test the difference of each to the best one.

    Settings that were validated on the same images are paired image by image, see `image_differences`; for a metric that is not a
    mean over images, by their seeds. The others are tested by Welch's t-test, see `_unpaired`.
    """
    scored = [group for group in groups if group.values()]
    metric = common_metric([run for group in scored for run in group.runs])
    if metric is None:
        return Ranking(scored, None, [None] * len(scored))
    ranked = sorted(scored, key=lambda group: metric.rank(group.mean(), group.mean("loss")), reverse=True)
    complete = [group for group in ranked if not group.missing_folds]
    incomplete = [group for group in ranked if group.missing_folds]
    differences = corrected(_differences(complete)) if complete else []
    return Ranking([*complete, *incomplete], metric, [None, *differences, *[None] * len(incomplete)][: len(ranked)])


def _differences(ranked: Sequence[RunGroup]) -> list[Difference | None]:
    best, *others = ranked
    images = [setting_scores(group) for group in ranked] if others else []
    paired = {
        number: scores
        for number, scores in enumerate(images[1:])
        if images[0] is not None and scores is not None and scores.has_images_of(images[0])
    }
    found: list[Difference | None] = [
        _paired_by_seeds(best, other) if number in paired else None for number, other in enumerate(others)
    ]
    first = images[0].scores if images and images[0] is not None else None
    if first is not None and paired:
        scores = {number: each.scores for number, each in paired.items() if each.scores is not None}
        values = [*scores.values()]
        # The smallest p of a bootstrap, 2 / (resamples + 1), times the number of settings (Holm) must stay far below 0.05.
        found_differences = image_differences(first, values, resamples=max(RESAMPLES, 200 * len(values)))
        for number, difference in zip(scores, found_differences, strict=True):
            found[number] = difference
    return [
        difference or _unpaired(best, other, same_images=number in paired)
        for number, (difference, other) in enumerate(zip(found, others, strict=True))
    ]


def _paired_by_seeds(best: RunGroup, other: RunGroup) -> Difference | None:
    """Return the difference of two settings with the same seeds; None unless they have several."""
    ours, others = best.training_scores(), other.training_scores()
    if len(ours) < 2 or ours.keys() != others.keys():
        return None
    values = [others[training] - score for training, score in ours.items()]
    variance = statistics.variance(values) / len(values)
    return t_difference(statistics.fmean(values), [(variance, len(values) - 1)], PAIRED_T)


def _unpaired(best: RunGroup, other: RunGroup, *, same_images: bool) -> Difference | None:
    """Return the difference of two settings by Welch's t-test; None if its variance is not known.

    Its parts are the variance over the seeds and, of an accuracy on other images, that over the images. The spread over the
    images of another metric is only known from folds.
    """
    pair, variances = (best, other), []
    samples = [sample for group in pair if len(sample := [*group.training_scores().values()]) > 1]
    if len(samples) == 1:  # the spread of the single seed is assumed to be that of the other setting's seeds
        (sample,) = samples
        variances.append((statistics.variance(sample) * (1 + 1 / len(sample)), len(sample) - 1))
    else:
        variances += [(statistics.variance(sample) / len(sample), len(sample) - 1) for sample in samples]
    images = [_image_variance(group) for group in pair]
    if not same_images:
        if None in images:
            return None
        variances += [part for part in images if part is not None]
    if not variances:
        return None
    difference = t_difference((other.mean() or 0) - (best.mean() or 0), variances, WELCH)
    if difference is None or same_images:
        return difference
    return replace(difference, image_error=sum(part[0] for part in images if part is not None) ** 0.5)


def _image_variance(group: RunGroup) -> tuple[float, int] | None:
    """Return the variance of a mean score due to the choice of the images, and its degrees of freedom; None if not known."""
    mean, count = group.mean() or 0, group.num_images
    if group.optimized.is_accuracy:
        if count < 2:
            return None
        fraction = (mean * count + 1) / (count + 2)  # Agresti and Caffo 2000: a perfect score has a variance too
        return fraction * (1 - fraction) / (count + 2), count - 1
    folds = group.values()
    if group.num_folds and len(group.trainings()) == 1 and len(folds) > 1:
        return statistics.variance(folds) / len(folds), len(folds) - 1
    return None


def verdict(ranking: Ranking) -> str:
    """Return the verdict of a ranking, a sentence: the best setting, or those that tie with it and what to do."""
    groups, metric = ranking.groups, ranking.metric
    if not groups:
        return "No run has finished yet."
    if metric is None:
        return f"Not ranked: these runs have {obstacle([run for group in groups for run in group.runs])}."
    best, *others = groups
    score = f"val {metric_label(metric.key)} {best.mean():.4f}"
    if not others:
        return f"{best.name}: {score}."
    second = f"{others[0].name} ({others[0].mean():.4f})"
    if not any(ranking.differences):
        if others[0].missing_folds:
            return f"{best.name}: {score}. {_not_compared(ranking)}"
        return (
            f"{best.name} is {metric.superlative} ({score}), then {second}; a test of their difference needs several seeds of "
            "each on the same images, with saved predictions."
        )
    untested = f" {_not_compared(ranking)}" if ranking.untested else ""
    if len(ranking.tied) == 1:
        num_tested = len(others) - len(ranking.untested)
        rest = "one other setting is" if num_tested == 1 else f"each of the {num_tested} other settings is"
        rest = f"{second} is" if len(others) == 1 else rest
        is_best = "is best" if ranking.is_clear else f"is {metric.superlative}"
        return f"{best.name} {is_best} ({score}): {rest} significantly worse.{untested}"
    names = [f"{group.name} ({group.mean():.4f})" for group in ranking.tied]
    count = f"{len(names)} of {len(groups)}" if len(names) < len(groups) else str(len(groups))
    advice = "train more seeds of them" if _num_seeds(ranking.tied) > 1 else "train several seeds of each of them"
    return (
        f"No clear winner among {count} settings: {listed(names)} do not differ significantly in val "
        f"{metric_label(metric.key)}. Choose the cheapest one, or {advice}.{untested}"
    )


def _not_compared(ranking: Ranking) -> str:
    names = [f"{group.name} ({group.mean():.4f})" for group in ranking.untested]
    return f"Not compared: {listed(names)}."


def _num_seeds(groups: Sequence[RunGroup]) -> int:
    return min(len(group.trainings()) for group in groups)
