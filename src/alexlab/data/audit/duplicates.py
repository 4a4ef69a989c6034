"""Exact and near duplicates: a leak if they are in different splits, a contradiction if they have different labels."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alexlab.data.audit.inspection import ImageStats, Inspection
from alexlab.data.listing import Finding
from alexlab.output.escape import shown

# Near duplicates: at most MAX_DIFFERING_BITS of the 64 hash bits differ, so that the hashes agree in at least one of four
# 16-bit bands, and the images, shrunk to 16 x 16 grey levels, differ by less than MAX_DIFFERENCE levels on average.
MAX_DIFFERING_BITS, MAX_DIFFERENCE = 3, 6.0
MAX_BUCKET = 200  # maximum number of images with the same band that are compared pairwise


@dataclass(frozen=True)
class Pair:
    """Two files that are identical or look alike.

    Args:
        code: `duplicate` or `near_duplicate`, followed by `_across_splits` or `_across_classes` if that applies.
        first, second: paths of the files, relative to the dataset's folder.
    """

    code: str
    first: str
    second: str

    def finding(self) -> Finding:
        """Return the finding, which is reported for the second file."""
        text = "looks like" if self.code.startswith("near") else "is the same file as"
        where = {"splits": ", in another split", "classes": ", in another class"}.get(self.code.rsplit("_", 1)[-1], "")
        return Finding(self.code, self.second, f"{text} {shown(self.first)}{where}")


def find_pairs(inspections: Sequence[Inspection]) -> list[Pair]:
    """Return all duplicates of a dataset; each of several equal files is paired with the first of them."""
    by_hash: dict[str, list[Inspection]] = defaultdict(list)
    for inspection in inspections:
        if inspection.stats is not None:
            by_hash[inspection.row.sha256].append(inspection)
    pairs = [_pair("duplicate", same[0], other) for same in by_hash.values() for other in same[1:]]
    unique = [same[0] for same in by_hash.values()]
    return pairs + [_pair("near_duplicate", first, second) for first, second in _near_duplicates(unique)]


def _pair(code: str, first: Inspection, second: Inspection) -> Pair:
    if first.row.split != second.row.split:
        code += "_across_splits"
    elif first.row.label != second.row.label:
        code += "_across_classes"
    return Pair(code, first.row.path, second.row.path)


def _near_duplicates(unique: Sequence[Inspection]) -> Iterator[tuple[Inspection, Inspection]]:
    hashed = [
        (inspection, inspection.stats, inspection.stats.hash_bits)
        for inspection in unique
        if inspection.stats and inspection.stats.hash_bits is not None
    ]
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (_, _, bits) in enumerate(hashed):
        for band in range(4):
            buckets[band, (bits >> (16 * band)) & 0xFFFF].append(index)
    candidates = {
        (first, second)
        for indices in buckets.values()
        for position, first in enumerate(indices[:MAX_BUCKET])
        for second in indices[position + 1 : MAX_BUCKET]
    }
    for first, second in sorted(candidates):
        (first_file, first_stats, first_bits), (second_file, second_stats, second_bits) = hashed[first], hashed[second]
        if (first_bits ^ second_bits).bit_count() <= MAX_DIFFERING_BITS and _look_alike(first_stats, second_stats):
            yield first_file, second_file


def _look_alike(first: ImageStats, second: ImageStats) -> bool:
    return bool(np.abs(first.grey.astype(int) - second.grey).mean() < MAX_DIFFERENCE)
