"""Ranking of settings: the best one, the differences of the others to it, and the verdict."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

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
    image_differences,
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
    mean over images, by their seeds. The others are tested as independent samples by Welch's t-test: of seeds, or of the
    validation images of a single run or of folds.
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
    return [difference or _unpaired(best, other) for difference, other in zip(found, others, strict=True)]


def _paired_by_seeds(best: RunGroup, other: RunGroup) -> Difference | None:
    """Return the difference of two settings with the same seeds; None unless they have several."""
    ours, others = best.training_scores(), other.training_scores()
    if len(ours) < 2 or ours.keys() != others.keys():
        return None
    values = [others[training] - score for training, score in ours.items()]
    variance = statistics.variance(values) / len(values)
    return t_difference(statistics.fmean(values), [(variance, len(values) - 1)], PAIRED_T)


def _unpaired(best: RunGroup, other: RunGroup) -> Difference | None:
    samples = [sample for group in (best, other) if (sample := group.sample_statistics()) is not None]
    if len(samples) < 2:
        return None
    value = samples[1][0] - samples[0][0]
    return t_difference(value, [(std**2 / count, count - 1) for _, std, count in samples], WELCH)


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
            "each."
        )
    if ranking.is_clear:
        rest = f"{second} is" if len(others) == 1 else f"each of the {len(others)} other settings is"
        return f"{best.name} is best ({score}): {rest} significantly worse."
    names = [f"{group.name} ({group.mean():.4f})" for group in ranking.tied]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    count = f"{len(names)} of {len(groups)}" if len(names) < len(groups) else str(len(groups))
    advice = "train more seeds of them" if _num_seeds(ranking.tied) > 1 else "train several seeds of each of them"
    return (
        f"No clear winner among {count} settings: {', '.join(names[:MAX_NAMES])}{more} do not differ significantly in val "
        f"{metric_label(metric.key)}. Choose the cheapest one, or {advice}."
    )


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
        more = f" and {len(unpaired) - MAX_NAMES} more" if len(unpaired) > MAX_NAMES else ""
        found.append(
            f"Not paired with the best, and tested by {WELCH}: {', '.join(unpaired[:MAX_NAMES])}{more}. Pairing needs the kept "
            "predictions of all runs, on the same images."
        )
    if tests and _num_seeds(ranking.groups) == 1:
        found.append(
            "With one seed per setting, the test accounts for the choice of images but not for the randomness of training."
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
    std = statistics.fmean(statistics.variance(sample) for sample in samples) ** 0.5
    if std == 0:
        return []
    step = POINTS if ranking.metric.is_accuracy else 0.01 * abs(ranking.groups[0].mean() or 0)
    count = seeds_needed(step, std, is_paired=is_paired)
    needed = f"more than {MAX_SEEDS}" if count is None else f"about {count}"
    small, spread = (f"{100 * x:.2g} points" if ranking.metric.is_accuracy else f"{x:.2g}" for x in (step, std))
    measured = "of the differences between paired seeds" if is_paired else "of the seeds of a setting"
    return [
        f"To detect a difference of {small} on these images, you need {needed} seeds of each setting (t-test, 80 % power; "
        f"measured standard deviation {measured}: {spread})."
    ]
