"""Evenly spaced samples."""

import pytest

from alexlab.data.spacing import evenly_spaced


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (5, 3, [0, 2, 4]),
        (10, 4, [0, 3, 6, 9]),
        (3, 7, [0, 1, 2]),
        (7, 1, [0]),
        (0, 4, []),
        (1, 1, [0]),
    ],
)
def test_positions_include_both_ends(length: int, count: int, expected: list[int]) -> None:
    assert evenly_spaced(length, count) == expected


def test_positions_are_distinct() -> None:
    for count in range(1, 60):
        positions = evenly_spaced(59, count)
        assert positions == sorted(set(positions)) and len(positions) == count
