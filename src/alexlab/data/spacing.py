"""Evenly spaced samples."""

import numpy as np


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return the positions of at most `count` evenly spaced entries of a sequence: its first, its last and others."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
