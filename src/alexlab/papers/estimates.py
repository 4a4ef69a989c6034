"""Estimates with 95 % intervals, and the verdict on a claim."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from alexlab.records.significance import CONFIDENCE, has_spread, wilson_interval

AGREES, DIFFERS, UNDECIDED = "agrees", "differs", "inconclusive"
MARGIN = 0.01  # by which a score may be below a published one and still agree


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Args:
        value: the number.
        low, high: ends of the interval; None if the sample is too small for one.
    """

    value: float
    low: float | None = None
    high: float | None = None


def _student(value: float, variance: float, degrees: int) -> Estimate:
    """Return a value with Student's interval; without one for a sample whose scores are all equal."""
    from scipy.stats import t

    if not has_spread(variance):
        return Estimate(value)
    error = math.sqrt(variance)
    half = float(t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    return Estimate(value, value - half, value + half)


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of a sample with Student's interval; without one for a single value or equal ones."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    return _student(mean, statistics.variance(values) / len(values), len(values) - 1)


def share_estimate(share: float, count: int) -> Estimate:
    """Return a share of `count` images with Wilson's interval."""
    return Estimate(share, *wilson_interval(round(share * count), count))


def difference_estimate(
    first: Sequence[float], second: Sequence[float], others: Sequence[Sequence[float]] = ()
) -> Estimate:
    """Return the difference of the means of two groups of scores, with Student's interval.

    The variance over the seeds is pooled over all groups, as in an analysis of variance: three seeds alone give a poor estimate
    of it. There is no interval if no group has two different scores.

    Args:
        first, second: scores of the two settings, one per seed.
        others: scores of other settings of the same recipe.
    """
    value = statistics.fmean(first) - statistics.fmean(second)
    groups = [first, second, *others]
    degrees = sum(len(group) - 1 for group in groups)
    if not degrees:
        return Estimate(value)
    squares = sum((score - statistics.fmean(group)) ** 2 for group in groups for score in group)
    return _student(value, squares / degrees * (1 / len(first) + 1 / len(second)), degrees)


def ratio_estimate(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Return the geometric mean of the ratios of pairs, with Student's interval of their logarithms."""
    logs = mean_estimate([math.log(a / b) for a, b in zip(numerators, denominators, strict=True)])
    return Estimate(*(None if end is None else math.exp(end) for end in (logs.value, logs.low, logs.high)))  # type: ignore[arg-type]


def verdict_of_difference(estimate: Estimate, zero: float = 0.0) -> str:
    """Return whether an interval is above zero, the direction that the paper states, below it, or includes it.

    Args:
        estimate: the difference.
        zero: the value of no difference, 1 for a ratio.
    """
    if estimate.low is None or estimate.high is None:
        return UNDECIDED
    return AGREES if estimate.low > zero else DIFFERS if estimate.high < zero else UNDECIDED


def verdict_of_score(estimate: Estimate, published: float) -> str:
    """Return whether a score is at most MARGIN below the published one, for its whole interval."""
    if estimate.low is None or estimate.high is None:
        return UNDECIDED
    least = published - MARGIN
    return AGREES if estimate.low >= least else DIFFERS if estimate.high < least else UNDECIDED


def epochs_to_error(errors: Sequence[float], target: float) -> float | None:
    """Return the number of epochs until the training error falls to a target, None if it never does.

    Args:
        errors: training error of each epoch, the mean over its images while they are trained on. Each is taken as the error at
            the middle of its epoch, with linear interpolation between them.
        target: the error.
    """
    before: float | None = None
    for number, error in enumerate(errors):
        if error <= target:
            if before is None:
                return number + 0.5
            return number - 0.5 + (before - target) / (before - error)
        before = error
    return None
