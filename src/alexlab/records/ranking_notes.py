"""Sentences on how the differences of a ranking were tested, and what it takes to detect a small difference."""

import statistics

from alexlab.output.numbers import counted, listed
from alexlab.records.power import MAX_SEEDS, images_needed, seeds_needed
from alexlab.records.ranking import Ranking
from alexlab.records.significance import BOOTSTRAP, MCNEMAR, PAIRED_T, WELCH, has_spread

POINTS = 0.005  # difference of accuracies for which the number of seeds is stated; of other metrics 1 %


def notes(ranking: Ranking) -> list[str]:
    """Return sentences on how the differences of a ranking were tested, and how many seeds a small difference needs."""
    repeated = sum(group.num_repeated for group in ranking.groups)
    found = [*_test_notes(ranking), *_seed_notes(ranking)]
    if repeated:
        verb = "is" if repeated == 1 else "are"
        found.append(f"{counted(repeated, 'run')} with the seed of a newer run of the same setting {verb} not counted.")
    lacking = [(group.name, group.missing_folds) for group in ranking.groups if group.missing_folds]
    if lacking:
        names = [f"{name} (fold {', '.join(map(str, folds))})" for name, folds in lacking]
        found.append(f"Without a finished run of each fold, and therefore not compared: {listed(names)}.")
    left_out = sum(group.num_incomplete for group in ranking.groups)
    if left_out:
        verb = "is" if left_out == 1 else "are"
        found.append(
            f"{counted(left_out, 'finished run')} {verb} not counted: the score is not finite, or the seed lacks other folds."
        )
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
            f"Not paired with the best, and tested by {WELCH}: {listed(unpaired)}. Pairing needs the saved predictions of all "
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
            f"{listed(single)} {verb} one seed: the randomness of {its} training is taken from the setting that it is compared "
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
    if not step:
        return []
    known = [difference.image_error for difference in ranking.differences if difference and difference.image_error]
    image_error = statistics.fmean(known) if known else 0.0
    count = seeds_needed(step, std, is_paired=is_paired, image_error=image_error)
    small, spread, error = (f"{100 * x:.2g} points" if is_accuracy else f"{x:.2g}" for x in (step, std, image_error))
    measured = "of the differences between paired seeds" if is_paired else "of the seeds of a setting"
    num_images = ranking.groups[0].num_images
    enough = images_needed(step, num_images, image_error)
    if enough > num_images:
        return [
            f"To detect a difference of {small}, you need at least about {enough:,} validation images, with any number of seeds "
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
