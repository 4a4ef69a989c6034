"""Intervals and verdicts, compared with numbers computed by hand."""

import math

import pytest

from alexlab.papers.estimates import (
    AGREES,
    DIFFERS,
    UNDECIDED,
    Estimate,
    difference_estimate,
    epochs_to_error,
    mean_estimate,
    ratio_estimate,
    share_estimate,
    verdict_of_difference,
    verdict_of_score,
)


def test_the_interval_of_a_mean_is_students() -> None:
    found = mean_estimate([1.0, 2.0, 3.0])  # standard error 1 / sqrt(3), t = 4.3027 at 2 degrees of freedom
    assert found.value == 2
    assert (found.low, found.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert mean_estimate([1.0]) == Estimate(1.0)


def test_equal_scores_have_no_interval_and_no_verdict() -> None:
    for gains in ([0.004, 0.004], [0.684 - 0.680, 0.672 - 0.668]):
        found = mean_estimate(gains)
        assert found.low is None and verdict_of_difference(found) == UNDECIDED
    found = difference_estimate([0.66, 0.66], [0.64, 0.64])
    assert found == Estimate(pytest.approx(0.02)) and verdict_of_difference(found) == UNDECIDED
    assert verdict_of_score(mean_estimate([0.89, 0.89]), 0.902) == UNDECIDED
    assert ratio_estimate([4.0, 4.0], [2.0, 2.0]).low is None


def test_the_interval_of_a_difference_pools_the_variance_over_all_settings() -> None:
    first, second, third = [0.5, 0.6], [0.3, 0.4], [0.1, 0.4]
    found = difference_estimate(first, second)
    assert found.value == pytest.approx(0.2)
    # Squares .005 + .005 on 2 degrees, variance .005, standard error sqrt(.005), t = 4.3027.
    assert found.high == pytest.approx(0.2 + 4.3027 * math.sqrt(0.005), abs=1e-4)
    found = difference_estimate(first, second, [third])  # .005 + .005 + .045 on 3 degrees, t = 3.1824
    assert found.low == pytest.approx(0.2 - 3.1824 * math.sqrt(0.055 / 3), abs=1e-4)
    assert difference_estimate([0.5], [0.4]).low is None


def test_the_interval_of_a_ratio_is_that_of_its_logarithm() -> None:
    found = ratio_estimate([8.0, 2.0], [1.0, 1.0])  # logarithms ln 8 and ln 2: mean ln 4, standard error ln 2
    assert found.value == pytest.approx(4)
    assert found.high == pytest.approx(4 * 2**12.7062, rel=1e-4)


def test_the_interval_of_a_share_is_wilsons() -> None:
    found = share_estimate(0.9, 100)
    assert (found.low, found.high) == pytest.approx((0.8256, 0.9448), abs=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.3, AGREES), (-0.3, -0.1, DIFFERS), (-0.1, 0.1, UNDECIDED), (None, None, UNDECIDED)],
)
def test_a_difference_is_judged_by_the_side_of_zero(low: float | None, high: float | None, verdict: str) -> None:
    assert verdict_of_difference(Estimate(0.0, low, high)) == verdict
    ratio = Estimate(1.0, None if low is None else 1 + low, None if high is None else 1 + high)
    assert verdict_of_difference(ratio, 1.0) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.892, 0.91, AGREES), (0.95, 0.96, AGREES), (0.8, 0.891, DIFFERS), (0.88, 0.91, UNDECIDED)],
)
def test_a_score_may_be_one_point_below_the_published_one(low: float, high: float, verdict: str) -> None:
    assert verdict_of_score(Estimate(0.9, low, high), 0.902) == verdict


@pytest.mark.parametrize(
    ("errors", "epochs"),
    [
        ([0.6, 0.4, 0.2], 2.25),  # the middle of epoch 2 is 1.5, and .25 is three quarters of the way to the next one
        ([0.2], 0.5),
        ([0.6, 0.25], 1.5),
        ([0.6, 0.3], None),
        ([], None),
    ],
)
def test_epochs_to_an_error_are_interpolated_between_the_middles_of_epochs(errors: list[float], epochs: float | None) -> None:  # fmt: skip
    found = epochs_to_error(errors, 0.25)
    assert found == (None if epochs is None else pytest.approx(epochs))
