"""Exact and near duplicates: a leak if they are in different splits, a contradiction if they have different labels."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from alexlab.data.audit.inspection import Inspection
from alexlab.data.listing import Finding
from alexlab.output.escape import shown

# Near duplicates: at most MAX_DIFFERING_BITS of the 64 hash bits differ, so that the hashes agree in at least one of four
# 16-bit bands, and the images, shrunk to 16 x 16 grey levels, differ by less than MAX_DIFFERENCE levels on average.
MAX_DIFFERING_BITS, MAX_DIFFERENCE = 3, 6.0
MAX_COMPARED = 100_000  # images after each image that are compared with it, of those with the same band: about 0.1 ms
MAX_CANDIDATES, MAX_MATCHES = 100, 20  # later images per image whose hash is similar, and that look like it


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
    """Return the duplicates of a dataset.

    Each of several equal files is paired with the first of them, and each image with the first MAX_MATCHES later ones that look
    like it, those in other splits before the others.
    """
    by_hash: dict[str, list[Inspection]] = defaultdict(list)
    for inspection in inspections:
        if inspection.stats is not None:
            by_hash[inspection.row.sha256].append(inspection)
    pairs = [_pair("duplicate", same[0], other) for same in by_hash.values() for other in same[1:]]
    # Of equal files one per split and class, so that each leak and each contradiction is found.
    unique: dict[tuple[str, str, str], Inspection] = {}
    for inspection in inspections:
        if inspection.stats is not None:
            unique.setdefault((inspection.row.sha256, inspection.row.split, inspection.row.label), inspection)
    return pairs + [_pair("near_duplicate", *pair) for pair in _near_duplicates([*unique.values()])]


def _pair(code: str, first: Inspection, second: Inspection) -> Pair:
    if first.row.split != second.row.split:
        code += "_across_splits"
    elif first.row.label != second.row.label:
        code += "_across_classes"
    return Pair(code, first.row.path, second.row.path)


def _near_duplicates(unique: Sequence[Inspection]) -> Iterator[tuple[Inspection, Inspection]]:
    hashed = [file for file in unique if file.stats and file.stats.hash_bits is not None]
    bits = np.array([file.stats.hash_bits for file in hashed if file.stats], np.uint64)
    splits = np.array([file.row.split for file in hashed], object)
    found: dict[int, list[np.ndarray]] = defaultdict(list)  # later images with a similar hash
    for band in range(4):
        keys = bits >> np.uint64(16 * band) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        for indices in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            for position, first in enumerate(indices.tolist()):
                later = indices[position + 1 : position + 1 + MAX_COMPARED]
                near = later[np.bitwise_count(bits[later] ^ bits[first]) <= MAX_DIFFERING_BITS]
                if len(near):
                    found[first].append(_other_splits_first(near, first, splits)[:MAX_CANDIDATES])
    for first, parts in sorted(found.items()):
        near = _other_splits_first(np.unique(np.concatenate(parts)), first, splits)
        matches = (second for second in near.tolist() if _look_alike(hashed[first], hashed[second]))
        for second in sorted(islice(matches, MAX_MATCHES)):
            yield hashed[first], hashed[second]


def _other_splits_first(rows: np.ndarray, first: int, splits: np.ndarray) -> np.ndarray:
    others = splits[rows] != splits[first]
    return np.concatenate([rows[others], rows[~others]])


def _look_alike(first: Inspection, second: Inspection) -> bool:
    """Return whether two images look alike but are not equal files, which are reported as such."""
    assert first.stats is not None and second.stats is not None
    if first.row.sha256 == second.row.sha256:
        return False
    return bool(np.abs(first.stats.grey.astype(int) - second.stats.grey).mean() < MAX_DIFFERENCE)
