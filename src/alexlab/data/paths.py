"""A list of paths in little memory. Imports no torch.

A list of a million Python strings takes 100 MB in each process that touches it. Here the paths are one block of bytes, which
the loader processes share with their parent.
"""

import os
from collections.abc import Sequence
from typing import overload

import numpy as np

END = b"\0"  # after each path in a block


class PathArray(Sequence[str]):
    """Relative paths as one block of bytes; an item is decoded when it is asked for.

    Args:
        block: the paths, one after the other, as the file system has them, each closed by a zero byte.
        ends: where each path ends in the block, with its zero, int64, and a 0 in front.
        rows: which of them these are, and in which order; None for all.
    """

    def __init__(self, block: np.ndarray, ends: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.block, self.ends, self.rows = block, ends, rows

    @classmethod
    def from_list(cls, paths: Sequence[str]) -> "PathArray":
        """The paths of a list."""
        return cls.from_block(np.frombuffer(b"".join(os.fsencode(path) + END for path in paths), np.uint8))

    @classmethod
    def from_block(cls, block: np.ndarray) -> "PathArray":
        """All the paths of a block."""
        return cls(block, _ends(block))

    def take(self, rows: np.ndarray) -> "PathArray":
        """Some of the paths, in the given order; the block is shared."""
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


def _ends(block: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(block == END[0]) + 1])
