"""Tests and intervals of differences between two settings, and the number of seeds that a difference needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
CHUNK_VALUES = 4_000_000  # numbers of drawn images in memory at once
ROUNDING = 1e-9

MCNEMAR = "McNemar's exact test"
BOOTSTRAP = "a paired bootstrap"
PAIRED_T = "a paired t-test over the seeds"
WELCH = "Welch's unpaired t-test"


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction (Wilson, "Probable inference", JASA 22, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(correct, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Difference:
    """Difference of a metric between two settings or nets.

    Args:
        value: the metric of a setting minus that of the best one, or of net B minus that of net A.
        low, high: ends of its 95 % interval, not corrected for the number of settings.
        p: p-value of the two-sided test, corrected by `holm` if it is one of several.
        test: name of the test.
        image_error: standard error due to the choice of the validation images, which more seeds do not lower; 0 if it is unknown.
    """

    value: float
    low: float
    high: float
    p: float
    test: str
    image_error: float = 0.0

    @property
    def is_significant(self) -> bool:
        """True if the test rejects a difference of zero at 95 % confidence."""
        return self.p < 1 - CONFIDENCE


class ImageScores(NamedTuple):
    """Score of each image under each training of a setting.

    Args:
        seeds: a name of each of the R trainings; equal names in two settings pair their trainings.
        values: float (R, N): correct or not, or the loss of an image.
        is_binary: whether the values are 0 and 1.
    """

    seeds: tuple[object, ...]
    values: np.ndarray
    is_binary: bool


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number so that all together have one error rate (Holm, 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def corrected(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Return the differences with p-values corrected by `holm`; None, where nothing was tested, stays."""
    p_values = iter(holm([difference.p for difference in differences if difference is not None]))
    return [None if difference is None else replace(difference, p=next(p_values)) for difference in differences]


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test: a binomial test of the images that only one of two settings gets right."""
    from scipy.stats import binomtest

    only_one, only_other = int((one > other).sum()), int((other > one).sum())
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0


def paired_interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of the differences between two results on the same N images, in -1..1, and its 95 % interval.

    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005:
    the interval is that of the normal distribution after half an image of each of the four outcomes is added, so that it has a
    width even if the results are equal on all images.

    Args:
        differences: difference on each image, (N,).
    """
    from scipy.stats import norm

    count = len(differences) + 2
    center = differences.sum() / count
    variance = ((differences**2).sum() + 1) / count - center**2
    half = norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(variance / count)
    return float(differences.mean()), float(max(-1, center - half)), float(min(1, center + half))


def has_spread(variance: float) -> bool:
    """Return whether a variance of scores is more than the rounding errors of equal ones."""
    return math.sqrt(variance) > ROUNDING


def t_difference(value: float, parts: Sequence[tuple[float, int]], test: str) -> Difference | None:
    """Return a difference with Student's interval and p-value; None for samples without any spread, which cannot be tested.

    Args:
        value: the difference.
        parts: variance of each independent part of it, and the part's degrees of freedom, combined by Welch and Satterthwaite.
        test: name of the test.
    """
    from scipy.stats import t

    variance = sum(part for part, _ in parts)
    if not has_spread(variance):
        return Difference(0.0, 0.0, 0.0, 1.0, test) if abs(value) <= ROUNDING else None
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    p = 2 * float(t.sf(abs(value) / math.sqrt(variance), freedom))
    return Difference(value, value - half, value + half, p, test)


def image_differences(
    best: ImageScores, others: Sequence[ImageScores], *, resamples: int = RESAMPLES
) -> list[Difference]:
    """Return the difference of each setting to the best from their scores on the same images.

    Two factors vary: the images and, with several seeds, the training. A resample is the measured difference, plus the change of
    its mean when the images are drawn with replacement (the same images for every setting), plus a draw of the mean over the
    seeds. The latter comes from Student's t with the measured spread of the seeds, because two or three seeds have too few
    resamples. Seeds are paired where both settings have the same ones, else their degrees of freedom are Satterthwaite's. A
    setting with one seed, compared with one that has several, is assumed to have the spread of the latter.
    The noise of single images under single seeds is in both parts, so the part of the images is scaled to leave it out, as for
    the random effects of Davison and Hinkley, *Bootstrap Methods and their Application* (1997), section 3.8. The interval and
    the p-value are percentiles; the generator has a fixed seed.

    If both settings have one seed and the scores are correct or not, the test is `mcnemar`, the interval `paired_interval`.

    Args:
        best: scores of the best setting.
        others: scores of the other ones, on the same images in the same order.
        resamples: number of resamples.
    """
    generator = np.random.default_rng(0)
    effects = [other.values.mean(0) - best.values.mean(0) for other in others]
    exact = [best.is_binary and len(best.values) == len(other.values) == 1 for other in others]
    resampled_effects = np.array([effect for effect, is_exact in zip(effects, exact, strict=True) if not is_exact])
    draws = iter(_image_draws(resampled_effects, resamples, generator) if len(resampled_effects) else ())
    found = []
    for other, effect, is_exact in zip(others, effects, exact, strict=True):
        if is_exact:
            p = mcnemar(best.values[0], other.values[0])
            found.append(Difference(*paired_interval(effect), p=p, test=MCNEMAR))
            continue
        of_images = next(draws)
        value, training = float(effect.mean()), _training_variances(best, other)
        variance = effect.var(ddof=1) / len(effect)
        # Both parts contain the noise. If few seeds agree by chance, their part has less of it than is estimated.
        of_choice = max(0.0, variance - min(training.noise, training.seeds))
        resampled = value + of_images * math.sqrt(of_choice / variance if variance else 0.0)
        if training.seeds:
            resampled += math.sqrt(training.seeds) * generator.standard_t(training.freedom, resamples)
        low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
        p = min(1.0, float(2 * (tail + 1) / (resamples + 1)))
        found.append(Difference(value, float(low), float(high), p, BOOTSTRAP, math.sqrt(of_choice)))
    return found


class _Variances(NamedTuple):
    """Variance of a mean over seeds and images due to the seeds, that due to noise, and the seeds' degrees of freedom."""

    seeds: float
    noise: float
    freedom: float


def _training_variances(best: ImageScores, other: ImageScores) -> _Variances:
    """Return the variances of the difference between two settings that are due to the training; 0 if both have one seed."""
    if other.seeds == best.seeds:
        return _variances(other.values - best.values)
    parts = [_variances(scores.values) for scores in (best, other)]
    known = [part for part in parts if part.freedom]
    if len(known) == 1:  # the spread of the single seed is assumed to be that of the other setting's seeds
        seeds, noise, freedom = known[0]
        return _Variances(seeds * (freedom + 2), noise * (freedom + 2), freedom)
    total, noise = sum(part.seeds for part in parts), sum(part.noise for part in parts)
    spread = sum(part.seeds**2 / part.freedom for part in known)
    return _Variances(total, noise, total**2 / spread if spread else 0)


def _variances(values: np.ndarray) -> _Variances:
    """Return the variances of the mean of values (R, N): a two-way analysis of variance without replication."""
    num_seeds, num_images = values.shape
    if num_seeds == 1:
        return _Variances(0, 0, 0)
    by_seed = values.mean(1, keepdims=True)
    residuals = values - by_seed - values.mean(0) + values.mean()
    noise = (residuals**2).sum() / ((num_seeds - 1) * max(1, num_images - 1))
    return _Variances(float(by_seed.var(ddof=1)) / num_seeds, noise / (num_seeds * num_images), num_seeds - 1)


def _image_draws(effects: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Return the means (K, resamples) of effects (K, N) over images drawn with replacement, minus the mean over all."""
    num_images = effects.shape[1]
    chunk, found = max(1, CHUNK_VALUES // num_images), []
    for start in range(0, resamples, chunk):
        num_draws = min(chunk, resamples - start)
        drawn = generator.integers(num_images, size=(num_draws, num_images), dtype=np.int32)
        drawn += np.arange(num_draws, dtype=np.int32)[:, None] * np.int32(num_images)
        counts = np.bincount(drawn.reshape(-1), minlength=num_draws * num_images).reshape(num_draws, num_images)
        found.append(effects @ counts.T.astype(effects.dtype) / num_images)
    return np.concatenate(found, axis=1) - effects.mean(1, keepdims=True)
