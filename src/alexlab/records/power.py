"""Numbers of seeds and images with which a test detects a difference between two settings."""

import math

import numpy as np

from alexlab.records.significance import CONFIDENCE

POWER = 0.8
MAX_SEEDS = 1000


def seeds_needed(difference: float, std: float, *, is_paired: bool, image_error: float = 0.0) -> int | None:
    """Return the smallest number of seeds per setting with which a t-test finds a difference in 80 % of the cases.

    Args:
        difference: true difference.
        std: standard deviation over the seeds, of the differences of paired seeds or within each setting; positive.
        is_paired: whether the settings have the same seeds.
        image_error: standard error of the difference due to the choice of images, which more seeds do not lower.

    Returns:
        At least 2; None if more than MAX_SEEDS are needed.
    """
    from scipy.stats import nct, t

    seeds = np.arange(2, MAX_SEEDS + 1)
    of_seeds = std**2 * (1 if is_paired else 2) / seeds
    variance = of_seeds + image_error**2
    # Satterthwaite's; from 10,000 on the normal distribution, for which SciPy's noncentral t is slow.
    freedom = np.minimum(10_000, (seeds - 1 if is_paired else 2 * (seeds - 1)) * (variance / of_seeds) ** 2)
    shift = difference / np.sqrt(variance)
    critical = t.ppf((1 + CONFIDENCE) / 2, freedom)
    power = nct.sf(critical, freedom, shift) + nct.cdf(-critical, freedom, shift)
    enough = seeds[np.nan_to_num(power, nan=1.0) >= POWER]  # NaN: SciPy gives up on a very large shift
    return int(enough[0]) if len(enough) else None


def images_needed(difference: float, num_images: int, image_error: float) -> int:
    """Return the number of images with which a difference is found in 80 % of the cases, with any number of seeds.

    Args:
        difference: true difference.
        num_images: number of images on which the error was measured.
        image_error: standard error of the difference due to their choice.
    """
    from scipy.stats import norm

    factor = float(norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(POWER))
    return math.ceil(num_images * (factor * image_error / difference) ** 2)
