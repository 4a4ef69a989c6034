"""Equal files and pictures that look alike: across splits a leak, across classes a contradiction. Imports no torch."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alexlab.data.audit.inspection import Picture, Seen
from alexlab.data.listing import Problem
from alexlab.output.escape import shown

# Near duplicates: at most so many of the 64 bits of the hash differ (two such hashes agree in one of four bands of 16 bits),
# and the pictures, shrunk to 16 x 16 grey values, differ by less than this on average.
MAX_BITS, MAX_DIFFERENCE = 3, 6.0
MAX_BUCKET = 200  # pictures that share a band; more are not compared


@dataclass(frozen=True)
class Pair:
    """Two files that are, or look, the same.

    Args:
        code: `duplicate` or `near_duplicate`, with `_across_splits` or `_across_classes` where that is so.
        first, second: their paths.
    """

    code: str
    first: str
    second: str

    def problem(self) -> Problem:
        """What to say of the second file."""
        text = "looks like" if self.code.startswith("near") else "is the same file as"
        where = {"splits": ", in another split", "classes": ", in another class"}.get(self.code.rsplit("_", 1)[-1], "")
        return Problem(self.code, self.second, f"{text} {shown(self.first)}{where}")


def find_pairs(seen: Sequence[Seen]) -> list[Pair]:
    """All duplicates of a data set; of several equal files, each is paired with the first."""
    by_hash: dict[str, list[Seen]] = defaultdict(list)
    for one in seen:
        if one.picture is not None:
            by_hash[one.row.sha256].append(one)
    pairs = [_pair("duplicate", same[0], other) for same in by_hash.values() for other in same[1:]]
    firsts = [same[0] for same in by_hash.values()]
    return pairs + [_pair("near_duplicate", one, other) for one, other in _near(firsts)]


def _pair(code: str, one: Seen, other: Seen) -> Pair:
    if one.row.split != other.row.split:
        code += "_across_splits"
    elif one.row.label != other.row.label:
        code += "_across_classes"
    return Pair(code, one.row.path, other.row.path)


def _near(firsts: Sequence[Seen]) -> Iterator[tuple[Seen, Seen]]:
    pictures = [(one, one.picture, one.picture.bits) for one in firsts if one.picture and one.picture.bits is not None]
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (_, _, bits) in enumerate(pictures):
        for band in range(4):
            buckets[band, (bits >> (16 * band)) & 0xFFFF].append(index)
    candidates = {
        (first, second)
        for members in buckets.values()
        for place, first in enumerate(members[:MAX_BUCKET])
        for second in members[place + 1 : MAX_BUCKET]
    }
    for first, second in sorted(candidates):
        (one, picture, bits), (other, other_picture, other_bits) = pictures[first], pictures[second]
        if (bits ^ other_bits).bit_count() <= MAX_BITS and _alike(picture, other_picture):
            yield one, other


def _alike(one: Picture, other: Picture) -> bool:
    return bool(np.abs(one.grey.astype(int) - other.grey).mean() < MAX_DIFFERENCE)
