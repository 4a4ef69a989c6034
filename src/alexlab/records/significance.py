"""Tests and intervals of differences between two settings, and the number of seeds that a difference needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 2000
CHUNK_VALUES = 4_000_000  # numbers of drawn images in memory at once
MAX_SEEDS = 1000

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
    """

    value: float
    low: float
    high: float
    p: float
    test: str

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
        is_single: whether the setting was trained once, without folds.
    """

    seeds: tuple[object, ...]
    values: np.ndarray
    is_binary: bool
    is_single: bool


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


def t_difference(value: float, parts: Sequence[tuple[float, int]], test: str) -> Difference | None:
    """Return a difference with Student's interval and p-value; None for samples without any spread, which cannot be tested.

    Args:
        value: the difference.
        parts: variance of each independent part of it, and the part's degrees of freedom, combined by Welch and Satterthwaite.
        test: name of the test.
    """
    from scipy.stats import t

    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Difference(0.0, 0.0, 0.0, 1.0, test) if value == 0 else None
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
    resamples. Seeds are paired where both settings have the same ones, else their degrees of freedom are Satterthwaite's.
    The noise of single images under single seeds is in both parts, so the part of the images is scaled to leave it out, as for
    the random effects of Davison and Hinkley, *Bootstrap Methods and their Application* (1997), section 3.8. The interval and
    the p-value are percentiles; the generator has a fixed seed. Two single trainings are tested by `mcnemar` if the scores are
    correct or not.

    Args:
        best: scores of the best setting.
        others: scores of the other ones, on the same images in the same order.
        resamples: number of resamples.
    """
    generator = np.random.default_rng(0)
    effects = np.array([other.values.mean(0) - best.values.mean(0) for other in others])
    draws = _image_draws(effects, resamples, generator)
    found = []
    for other, effect, of_images in zip(others, effects, draws, strict=True):
        value = float(effect.mean())
        paired = [other.values - best.values] if other.seeds == best.seeds else [other.values, best.values]
        parts = [_variances(values) for values in paired if len(values) > 1]
        variance, noise = effect.var(ddof=1) / len(effect), sum(part.noise for part in parts)
        resampled = value + of_images * math.sqrt(max(0.0, 1 - noise / variance) if variance else 0.0)
        if of_seeds := sum(part.seeds for part in parts):
            freedom = of_seeds**2 / sum(part.seeds**2 / part.freedom for part in parts)
            resampled += math.sqrt(of_seeds) * generator.standard_t(freedom, resamples)
        low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
        p, test = min(1.0, 2 * (tail + 1) / (resamples + 1)), BOOTSTRAP
        if best.is_binary and best.is_single and other.is_single:
            p, test = mcnemar(best.values[0], other.values[0]), MCNEMAR
        found.append(Difference(value, float(low), float(high), float(p), test))
    return found


class _Variances(NamedTuple):
    """Variance of a mean over seeds and images due to the seeds, that due to noise, and the seeds' degrees of freedom."""

    seeds: float
    noise: float
    freedom: int


def _variances(values: np.ndarray) -> _Variances:
    """Return the variances of the mean of values (R, N): a two-way analysis of variance without replication."""
    num_seeds, num_images = values.shape
    by_seed = values.mean(1, keepdims=True)
    residuals = values - by_seed - values.mean(0) + values.mean()
    noise = (residuals**2).sum() / ((num_seeds - 1) * max(1, num_images - 1))
    return _Variances(by_seed.var(ddof=1) / num_seeds, noise / (num_seeds * num_images), num_seeds - 1)


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


def seeds_needed(difference: float, std: float, *, is_paired: bool) -> int | None:
    """Return the smallest number of seeds per setting with which a t-test finds a difference in 80 % of the cases.

    Args:
        difference: true difference.
        std: standard deviation over the seeds, of the differences of paired seeds or within each setting.
        is_paired: whether the settings have the same seeds.

    Returns:
        At least 2; None if more than MAX_SEEDS are needed.
    """
    from scipy.stats import nct, t

    seeds = np.arange(2, MAX_SEEDS + 1)
    freedom = seeds - 1 if is_paired else 2 * (seeds - 1)
    shift = difference / (std * np.sqrt((1 if is_paired else 2) / seeds))
    critical = t.ppf((1 + CONFIDENCE) / 2, freedom)
    power = nct.sf(critical, freedom, shift) + nct.cdf(-critical, freedom, shift)
    enough = seeds[np.nan_to_num(power, nan=1.0) >= POWER]  # NaN: SciPy gives up on a very large shift
    return int(enough[0]) if len(enough) else None
