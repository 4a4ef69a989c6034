"""Distribution of the images of a split among shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from tarfile import BLOCKSIZE

import numpy as np

from alexlab.data.image_file import Decoding, open_image
from alexlab.data.splits import Split
from alexlab.errors import DataError
from alexlab.output.escape import shown


@dataclass(frozen=True)
class ShardLayout:
    """Positions of the images of one split in its shards.

    Args:
        name: name of the split.
        split: image files.
        rows: rows of the split in the order in which they are written.
        states: size, modification and change time of the files, int64 (N, 3), see `Split.file_state`.
        starts: offset of each file in its shard in bytes, int64 (N,).
        ends: for each shard, the position in `rows` after its last image.
    """

    name: str
    split: Split
    rows: np.ndarray
    states: np.ndarray
    starts: np.ndarray
    ends: Sequence[int]

    @property
    def lengths(self) -> np.ndarray:
        """Size of each file in bytes, int64 (N,)."""
        return np.asarray(self.states[:, 0])

    def shards(self) -> list[tuple[str, range]]:
        """Return name and positions in `rows` of each shard."""
        starts = [0, *self.ends[:-1]]
        spans = [range(start, end) for start, end in zip(starts, self.ends, strict=True)]
        return [(f"{self.name}-{number:06d}.tar", span) for number, span in enumerate(spans)]


def lay_out(name: str, split: Split, shard_bytes: int, decoding: Decoding, skip: bool) -> ShardLayout:
    """Return the layout of a split; training images are in a fixed random order.

    Args:
        name: name of the split.
        split: image files.
        shard_bytes: approximate size of a shard.
        decoding: decoding settings, for the limit of the file size.
        skip: leave out files that are missing, empty, too large or not regular.

    Raises:
        ImageError: for the first such file, unless `skip` is true.
    """
    rows = np.arange(len(split))
    if name == "train":
        rows = np.random.Generator(np.random.Philox(0)).permutation(rows)
    states = np.array([split.file_state(row) for row in rows.tolist()], np.int64).reshape(-1, 3)
    lengths = states[:, 0]
    valid = (lengths > 0) & (lengths <= decoding.max_bytes)
    if not valid.all():
        if not skip:
            path = split.file_path(int(rows[~valid][0]))
            open_image(path, decoding).close()  # raises the error with the reason
            raise DataError(f"{shown(path)} changed while the shards were being written; run the command again")
        rows, states, lengths = rows[valid], states[valid], lengths[valid]
    label_bytes = 2 * BLOCKSIZE  # a header, and a number of a few digits
    sizes = BLOCKSIZE + -(-lengths // BLOCKSIZE) * BLOCKSIZE + label_bytes
    starts, ends, filled = np.zeros(len(rows), np.int64), [], 0
    for number, size in enumerate(sizes.tolist()):
        if filled and filled + size > shard_bytes:
            ends.append(number)
            filled = 0
        starts[number] = filled + BLOCKSIZE
        filled += size
    return ShardLayout(name, split, rows, states, starts, [*ends, len(rows)])
