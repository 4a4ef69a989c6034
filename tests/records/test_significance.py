"""Statistics of differences between settings, against SciPy, published and hand-computed numbers, and simulated data."""

import time

import numpy as np
import pytest
from scipy import stats

from alexlab.records.significance import (
    BOOTSTRAP,
    MCNEMAR,
    Difference,
    ImageScores,
    corrected,
    holm,
    image_differences,
    mcnemar,
    paired_interval,
    t_difference,
)


def scores(values: np.ndarray, *, seeds: tuple[object, ...] | None = None) -> ImageScores:
    return ImageScores(seeds or tuple(range(len(values))), values.astype(float), bool(np.isin(values, (0, 1)).all()))


def pair(both: int, only_best: int, only_other: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which images two settings get right, from the table of McNemar's test."""
    best = np.repeat([1, 1, 0, 0], [both, only_best, only_other, neither])
    other = np.repeat([1, 0, 1, 0], [both, only_best, only_other, neither])
    return best, other


def test_mcnemar_is_the_exact_binomial_test_of_discordant_images() -> None:
    best, other = pair(59, 6, 16, 80)
    # The sum of the binomial tail, written out: 2 * sum_{k <= 6} C(22, k) / 2^22. statsmodels' mcnemar(exact=True) gives 0.05248.
    tail = sum(int(stats.binom(22, 0.5).pmf(k) * 2**22 + 0.5) for k in range(7))
    assert mcnemar(best, other) == pytest.approx(2 * tail / 2**22) == pytest.approx(0.052478790)
    assert mcnemar(other, best) == mcnemar(best, other)
    assert mcnemar(*pair(5, 0, 0, 5)) == 1.0
    assert mcnemar(*pair(0, 5, 0, 0)) == pytest.approx(2 / 32)


def test_holm_on_the_example_of_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []
    found = corrected([Difference(1, 0, 2, 0.03, "x"), None, Difference(1, 0, 2, 0.02, "x")])
    assert [None if each is None else each.p for each in found] == [0.04, None, 0.04]


def test_t_intervals_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(0.3, 1, 6), generator.normal(0, 2, 9)
    welch = stats.ttest_ind(one, other, equal_var=False)
    found = t_difference(one.mean() - other.mean(), [(one.var(ddof=1) / 6, 5), (other.var(ddof=1) / 9, 8)], "x")
    assert (found.p, found.low, found.high) == pytest.approx((welch.pvalue, *welch.confidence_interval()))
    paired = stats.ttest_rel(one, other[:6])
    difference = one - other[:6]
    found = t_difference(difference.mean(), [(difference.var(ddof=1) / 6, 5)], "x")
    assert (found.p, found.low, found.high) == pytest.approx((paired.pvalue, *paired.confidence_interval()))
    same = t_difference(0.0, [(0.0, 1)], "x")
    assert same is not None and same.p == 1
    for spread in (0.0, 1e-34):
        assert t_difference(0.1, [(spread, 1)], "x") is None, "samples without spread cannot be tested"


def test_single_runs_are_compared_by_mcnemar_with_the_interval_of_paired_proportions() -> None:
    best, other = pair(800, 60, 40, 100)
    (found,) = image_differences(scores(best[None]), [scores(other[None])])
    assert found.test == MCNEMAR and found.p == pytest.approx(stats.binomtest(40, 100).pvalue)
    assert (found.value, found.low, found.high) == paired_interval(other - best) and found.value == pytest.approx(-0.02)


def test_four_images_make_no_winner() -> None:
    """Of 270 images four are right only with the best setting, none only with the other; the exact test has p = 2 / 2^4."""
    best, other = pair(264, 4, 0, 2)
    (found,) = image_differences(scores(best[None]), [scores(other[None])])
    assert found.p == pytest.approx(0.125) and not found.is_significant and found.low < 0 < found.high


def simulated(
    generator: np.random.Generator, *shifts: float, num_seeds: int, num_images: int, luck: float
) -> list[np.ndarray]:
    """Return for each setting which images each seed gets right: by difficulty, the luck of the seed, and chance."""
    difficulty = generator.normal(1.2, 1.5, num_images)
    logits = [difficulty + shift + generator.normal(0, luck, (num_seeds, 1)) for shift in shifts]
    return [generator.random(each.shape) < stats.logistic.cdf(each) for each in logits]


def test_the_interval_agrees_with_the_normal_approximation_of_a_two_way_layout() -> None:
    generator = np.random.default_rng(1)
    best, other = simulated(generator, 0.2, 0.0, num_seeds=40, num_images=500, luck=0.1)
    (found,) = image_differences(scores(best), [scores(other)])
    difference = other.astype(float) - best
    residuals = difference - difference.mean(1, keepdims=True) - difference.mean(0) + difference.mean()
    noise = (residuals**2).sum() / (39 * 499) / (40 * 500)
    error = np.sqrt(difference.mean(1).var(ddof=1) / 40 + difference.mean(0).var(ddof=1) / 500 - noise)
    assert found.value == pytest.approx(difference.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    (unpaired,) = image_differences(scores(best), [scores(other, seeds=tuple(range(40, 80)))])
    assert unpaired.value == found.value and max(found.p, unpaired.p) <= 0.01
    of_images = np.sqrt(difference.mean(0).var(ddof=1) / 500 - noise)
    assert found.image_error == pytest.approx(of_images)
    assert image_differences(scores(best), [scores(best)])[0] == Difference(0, 0, 0, 1, BOOTSTRAP)


@pytest.mark.parametrize(("num_seeds", "is_paired"), [(1, True), (2, True), (3, False), (5, True)])
def test_intervals_cover_the_true_difference(num_seeds: int, is_paired: bool) -> None:
    """In 400 simulated comparisons of equal settings on new images with new seeds, 95 % of the intervals contain zero."""
    generator, covered, significant = np.random.default_rng(2), 0, 0
    luck = 0.15 if num_seeds > 1 else 0.0  # the spread of a single seed cannot be measured
    for _ in range(400):
        one, two = simulated(generator, 0, 0, num_seeds=num_seeds, num_images=250, luck=luck)
        names = tuple(range(num_seeds)) if is_paired else tuple("abc")
        (found,) = image_differences(scores(one), [scores(two, seeds=names)], resamples=800)
        covered += found.low <= 0 <= found.high
        significant += found.is_significant
    assert 0.92 <= covered / 400 <= 0.992, covered / 400
    assert abs(400 - covered - significant) <= 8


@pytest.mark.parametrize(("num_seeds", "num_images", "skill"), [(2, 100, 3.0), (2, 270, 4.5), (3, 270, 4.5)])
def test_few_seeds_that_agree_by_chance_prove_nothing(num_seeds: int, num_images: int, skill: float) -> None:
    """In 100 simulated comparisons of eight equal settings, at most 5 have a significant difference."""
    generator, significant = np.random.default_rng(3), 0
    for _ in range(100):
        first, *others = simulated(generator, *[skill] * 8, num_seeds=num_seeds, num_images=num_images, luck=0.0)
        found = corrected(image_differences(scores(first), [scores(other) for other in others]))
        significant += any(each is not None and each.is_significant for each in found)
    assert significant <= 5, significant
    misses = 1 - np.eye(2, 200)  # each of two seeds misses another image
    (found,) = image_differences(scores(np.ones((2, 200))), [scores(misses)])
    assert found.p > 0.1 and found.low < found.high


@pytest.mark.parametrize("num_images", [250, 4000])
def test_a_single_seed_compared_with_several_has_their_spread(num_images: int) -> None:
    """In 400 simulated comparisons of equal settings, one with five seeds and one with a single seed, few are significant."""
    generator, significant = np.random.default_rng(5), 0
    for _ in range(400):
        many, single = simulated(generator, 0, 0, num_seeds=5, num_images=num_images, luck=0.15)
        (found,) = image_differences(scores(many), [scores(single[:1])], resamples=800)
        (turned,) = image_differences(scores(single[:1]), [scores(many)], resamples=800)
        assert (turned.value == -found.value and turned.is_significant == found.is_significant) or abs(
            found.p - turned.p
        ) < 0.03
        significant += found.is_significant
    assert significant / 400 < 0.075, significant / 400


def test_eight_settings_of_ten_thousand_images_take_about_a_second() -> None:
    generator = np.random.default_rng(3)
    settings = [scores(generator.random((3, 10_000)) < 0.9) for _ in range(8)]
    start_s = time.perf_counter()
    first = image_differences(settings[0], settings[1:])
    assert time.perf_counter() - start_s < 10  # 0.7 s on a free core
    assert first == image_differences(settings[0], settings[1:]), "the generator has a fixed seed"
