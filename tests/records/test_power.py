"""Numbers of seeds and images that a difference needs, against published tables and simulated data."""

import numpy as np
import pytest
from scipy import stats

from alexlab.records.power import images_needed, seeds_needed


@pytest.mark.parametrize(
    ("difference", "is_paired", "expected"),
    [(1.0, True, 10), (0.5, True, 34), (0.2, True, 199), (1.0, False, 17), (0.8, False, 26), (0.5, False, 64), (100.0, True, 2), (0.01, True, None)],
)  # fmt: skip
def test_the_number_of_seeds_is_that_of_published_tables(
    difference: float, is_paired: bool, expected: int | None
) -> None:
    """Sample sizes at 80 % power and 5 %, as of G*Power and Cohen (1988): 64 for d = 0.5, 26 for 0.8, 17 for 1."""
    assert seeds_needed(difference, 1.0, is_paired=is_paired) == expected


@pytest.mark.parametrize("image_error", [0.0, 0.15])
def test_the_number_of_seeds_has_the_power_in_a_simulation(image_error: float) -> None:
    generator = np.random.default_rng(4)
    count = seeds_needed(0.8, 1.0, is_paired=True, image_error=image_error)
    assert count is not None
    images = generator.normal(0, image_error, (4000, 1)) if image_error else 0.0
    samples = generator.normal(0.8, 1, (4000, count)) + images
    variance = samples.var(1, ddof=1) / count
    freedom = (count - 1) * ((variance + image_error**2) / variance) ** 2
    p_values = 2 * stats.t.sf(abs(samples.mean(1)) / np.sqrt(variance + image_error**2), freedom)
    assert 0.78 < (p_values < 0.05).mean() < 0.86


def test_too_few_images_cannot_be_replaced_by_seeds() -> None:
    assert seeds_needed(0.005, 0.01, is_paired=True, image_error=0.003) is None
    count = images_needed(0.005, 1000, 0.003)
    assert count == pytest.approx(1000 * (2.801585 * 0.003 / 0.005) ** 2, abs=1)
    less = 0.003 * (1000 / (1.1 * count)) ** 0.5
    assert seeds_needed(0.005, 0.01, is_paired=True, image_error=less) is not None
