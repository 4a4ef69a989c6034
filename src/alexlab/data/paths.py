"""Memory-efficient sequence of paths.

A list of a million Python strings takes 100 MB in each process that touches it, because counting references copies its pages.
Here the paths are one block of bytes, which DataLoader workers share with their parent.
"""

import os
from collections.abc import Sequence
from typing import overload

import numpy as np

TERMINATOR = b"\0"  # after each path in a block


class PathArray(Sequence[str]):
    """Relative paths in one block of bytes; items are decoded on access.

    Args:
        block: uint8, the encoded paths one after the other, each followed by a zero byte.
        ends: int64 (N + 1,), 0 and the end of each path in the block, including its zero byte.
        rows: int64, indices of the paths that this array has, in its order; None for all.
    """

    def __init__(self, block: np.ndarray, ends: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.block, self.ends, self.rows = block, ends, rows

    @classmethod
    def from_list(cls, paths: Sequence[str]) -> "PathArray":
        """Encode a list of paths."""
        return cls.from_block(np.frombuffer(b"".join(os.fsencode(path) + TERMINATOR for path in paths), np.uint8))

    @classmethod
    def from_block(cls, block: np.ndarray) -> "PathArray":
        """Return all paths of a block."""
        return cls(block, np.concatenate([np.zeros(1, np.int64), np.flatnonzero(block == TERMINATOR[0]) + 1]))

    def take(self, rows: np.ndarray) -> "PathArray":
        """Return the paths at some indices, in that order; the block is shared."""
        return PathArray(self.block, self.ends, rows if self.rows is None else self.rows[rows])

    def __len__(self) -> int:
        return len(self.ends) - 1 if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = index % len(self) if self.rows is None else int(self.rows[index])
        return os.fsdecode(self.block[self.ends[row] : self.ends[row + 1] - 1].tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))  # noqa: B905

    __hash__ = None  # type: ignore[assignment]
