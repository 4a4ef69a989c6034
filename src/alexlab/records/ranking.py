"""Ranking of settings: the best one, the differences of the others to it, and the verdict."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alexlab.output.numbers import counted
from alexlab.records.compare import RunGroup
from alexlab.records.image_scores import setting_scores
from alexlab.records.optimized import OptimizedMetric, metric_label
from alexlab.records.results import common_metric, obstacle
from alexlab.records.significance import (
    BOOTSTRAP,
    MAX_SEEDS,
    MCNEMAR,
    PAIRED_T,
    RESAMPLES,
    WELCH,
    Difference,
    corrected,
    has_spread,
    image_differences,
    images_needed,
    seeds_needed,
    t_difference,
)

MAX_NAMES = 5  # settings that a sentence names
POINTS = 0.005  # difference of accuracies for which the number of seeds is stated; of other metrics 1 %


@dataclass(frozen=True)
class Ranking:
    """Settings with scores, best first.

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
        """The settings that are not significantly worse than the first one, and the first one."""
        pairs = zip(self.groups, self.differences, strict=True)
        return [group for group, difference in pairs if difference is None or not difference.is_significant]

    @property
    def is_clear(self) -> bool:
        """True if the first setting is significantly better than each other one."""
        return len(self.groups) > 1 and len(self.tied) == 1


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
    return Ranking(ranked, metric, [None, *corrected(_differences(ranked))])


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
        return mean * (1 - mean) / max(1, count), max(1, count - 1)
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
        return (
            f"{best.name} is {metric.superlative} ({score}), then {second}; a test of their difference needs several seeds of "
            "each on the same images, with kept predictions."
        )
    if ranking.is_clear:
        rest = f"{second} is" if len(others) == 1 else f"each of the {len(others)} other settings is"
        return f"{best.name} is best ({score}): {rest} significantly worse."
    names = [f"{group.name} ({group.mean():.4f})" for group in ranking.tied]
    count = f"{len(names)} of {len(groups)}" if len(names) < len(groups) else str(len(groups))
    advice = "train more seeds of them" if _num_seeds(ranking.tied) > 1 else "train several seeds of each of them"
    return (
        f"No clear winner among {count} settings: {_listed(names)} do not differ significantly in val "
        f"{metric_label(metric.key)}. Choose the cheapest one, or {advice}."
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _num_seeds(groups: Sequence[RunGroup]) -> int:
    return min(len(group.trainings()) for group in groups)


def notes(ranking: Ranking) -> list[str]:
    """Return sentences on how the differences of a ranking were tested, and how many seeds a small difference needs."""
    repeated = sum(group.num_repeated for group in ranking.groups)
    found = [*_test_notes(ranking), *_seed_notes(ranking)]
    if repeated:
        verb = "is" if repeated == 1 else "are"
        found.append(f"{counted(repeated, 'run')} with the seed of a newer run of the same setting {verb} not counted.")
    return found


def _test_notes(ranking: Ranking) -> list[str]:
    tested = [difference for difference in ranking.differences if difference is not None]
    tests = [test for test in (MCNEMAR, BOOTSTRAP, PAIRED_T) if any(each.test == test for each in tested)]
    found = []
    if tests:
        images = f"the same {ranking.groups[0].num_images:,} validation images"
        found.append(f"Differences to the best are those on {images}, tested by {' and '.join(tests)}.")
    unpaired = [
        group.name
        for group, difference in zip(ranking.groups, ranking.differences, strict=True)
        if difference is not None and difference.test == WELCH
    ]
    if unpaired:
        found.append(
            f"Not paired with the best, and tested by {WELCH}: {_listed(unpaired)}. Pairing needs the kept predictions of all "
            "runs, on the same images."
        )
    single = [group.name for group in ranking.groups if len(group.trainings()) == 1]
    if tested and len(single) == len(ranking.groups):
        found.append(
            "With one seed per setting, the test accounts for the choice of images but not for the randomness of training."
        )
    elif tested and single:
        verb, its = ("has", "its") if len(single) == 1 else ("have", "their")
        found.append(
            f"{_listed(single)} {verb} one seed: the randomness of {its} training is taken from the setting that it is compared "
            "with, and left out if that has one seed too."
        )
    if len(tested) > 1:
        found.append(f"p-values are corrected for {len(tested)} comparisons (Holm); intervals are not.")
    return found


def _seed_notes(ranking: Ranking) -> list[str]:
    """Return the number of seeds that a small difference needs to be detected; nothing without several seeds."""
    tables = [table for group in ranking.groups if len(table := group.training_scores()) > 1]
    if ranking.metric is None or not tables:
        return []
    first, *others = tables
    is_paired = bool(others) and all(table.keys() == first.keys() for table in others)
    samples = (
        [[table[key] - first[key] for key in first] for table in others]
        if is_paired
        else [[*table.values()] for table in tables]
    )
    variance = statistics.fmean(statistics.variance(sample) for sample in samples)
    if not has_spread(variance):
        return []
    std, is_accuracy = variance**0.5, ranking.metric.is_accuracy
    step = POINTS if is_accuracy else 0.01 * abs(ranking.groups[0].mean() or 0)
    tested = [difference.image_error for difference in ranking.differences if difference is not None]
    image_error = statistics.fmean(tested) if tested else 0.0
    count = seeds_needed(step, std, is_paired=is_paired, image_error=image_error)
    small, spread, error = (f"{100 * x:.2g} points" if is_accuracy else f"{x:.2g}" for x in (step, std, image_error))
    measured = "of the differences between paired seeds" if is_paired else "of the seeds of a setting"
    num_images = ranking.groups[0].num_images
    if image_error and count is None:
        enough = f"{images_needed(step, num_images, image_error):,}"
        return [
            f"To detect a difference of {small}, you need at least about {enough} validation images, with any number of seeds "
            f"(80 % power; standard error due to the choice of these {num_images:,} images: {error})."
        ]
    where, of_images = (
        (" on these images", "") if not image_error else ("", f", standard error due to the images: {error}")
    )
    needed = f"more than {MAX_SEEDS}" if count is None else f"about {count}"
    return [
        f"To detect a difference of {small}{where}, you need {needed} seeds of each setting (80 % power; measured standard "
        f"deviation {measured}: {spread}{of_images})."
    ]
