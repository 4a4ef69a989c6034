"""Colour of kernels."""

import numpy as np
import pytest
import torch

from alexlab.papers.net_measures import colour_shares, excess_gap


def test_a_grey_kernel_has_no_colour_and_an_opponent_kernel_only_colour() -> None:
    pattern = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(0))
    pattern -= pattern.mean()
    grey, opponent = pattern.expand(3, 5, 5), torch.cat([pattern, -pattern, 0 * pattern])
    red = torch.cat([pattern, 0 * pattern, 0 * pattern])  # a third of it is brightness
    assert colour_shares(torch.stack([grey + 7, opponent, red])) == pytest.approx([0, 1, 2 / 3], abs=1e-6)


def test_towers_that_specialize_differ_by_more_than_random_halves() -> None:
    generator = np.random.default_rng(1)
    grey, coloured = generator.uniform(0, 0.3, 24), generator.uniform(0.7, 1, 24)
    assert excess_gap(grey, coloured) > 0.6
    mixed = np.concatenate([grey, coloured])
    generator.shuffle(mixed)
    assert abs(excess_gap(mixed[:24], mixed[24:])) < 0.15
