"""Fingerprint of a dataset: its classes, paths, labels, sizes and a sample of its contents."""

import hashlib
import itertools
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from alexlab.data.paths import TERMINATOR, PathArray
from alexlab.data.splits import Split, Splits
from alexlab.errors import DataError

MAX_SIZES = 10_000  # files of a split whose size goes into the fingerprint, evenly spaced
MAX_STATES = 100_000  # files of a split, evenly spaced, whose changes a cache key reflects
MAX_CONTENT = 64_000_000  # bytes of a split whose content goes into the fingerprint: 0.1 s
# Training images that are recognized elsewhere: at least one of 64 is in a tenth of all with a probability of 0.999.
SAMPLE_SIZE = 64


def describe_images(splits: Splits) -> dict[str, Any]:
    """Return the counts and classes of a dataset, a hash of its paths, labels and sizes, and one of its contents.

    The latter covers at most MAX_CONTENT bytes of each split, in evenly spaced files. `sample` identifies some training images,
    see `find_sampled`.
    """
    digest, contents = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for name, split in splits.items():
        rows = split.sample_indices(MAX_SIZES)
        sizes = [split.file_size(row) for row in rows]
        digest.update(f"{name}:{len(split)}:".encode())
        digest.update(np.asarray(split.labels).tobytes())
        digest.update(np.array(sizes, np.int64).tobytes())
        if isinstance(split.paths, PathArray) and split.paths.rows is None:
            digest.update(split.paths.block.tobytes())
        else:
            digest.update(b"".join(os.fsencode(path) + TERMINATOR for path in split.paths))
        if split.lengths is None:  # shards are checked by their own hashes when they are read
            every = max(1, -(-sum(sizes) // MAX_CONTENT))
            for row in rows[::every]:
                contents.update(split.content(row) or b"")
    return {
        "counts": {name: len(split) for name, split in splits.items()},
        "classes": len(splits.classes),
        "class_names": list(splits.classes),
        "fingerprint": digest.hexdigest(),
        "contents": contents.hexdigest(),
        "sample": _sample(splits.train),
    }


def _sample(train: Split) -> list[str]:
    """Return `name-size-content` of some training images, with hashes of name and content: names may be confidential."""
    rows = train.sample_indices(SAMPLE_SIZE)
    every = max(1, -(-sum(train.file_size(row) for row in rows) // MAX_CONTENT))
    contents = ((row, train.content(row)) for row in rows[::every])
    return [f"{_key(train, row)}-{_hash(content)}" for row, content in contents if content is not None]


def cache_key(split: Split, *settings: object) -> str | None:
    """Return a hash of the files of a split and of settings, the name of a cached file; None for images without files."""
    states = [split.file_state(row) for row in split.sample_indices(MAX_STATES)]
    if any(size <= 0 for size, *_ in states):
        return None
    digest = hashlib.blake2b(repr([os.path.abspath(split.root), len(split), *settings]).encode(), digest_size=12)
    for path in split.paths:
        digest.update(os.fsencode(path) + b"\0")
    digest.update(np.array(states, np.int64).tobytes())
    return digest.hexdigest()


def find_sampled(sample: Collection[str], split: Split) -> list[int]:
    """Return the rows of those images in a split that a run has in its sample of the training images, in any folder.

    Args:
        sample: `sample` of `describe_images` of the run.
        split: images, with their file names and contents.
    """
    names, keys = ({entry.rsplit("-", count)[0] for entry in sample} for count in (2, 1))
    rows = [row for row, path in enumerate(split.paths if sample else ()) if _hash_name(path) in names]
    same = [row for row in rows if _key(split, row) in keys]
    return [row for row in same if (content := split.content(row)) and f"{_key(split, row)}-{_hash(content)}" in sample]


def _key(split: Split, row: int) -> str:
    return f"{_hash_name(split.paths[row])}-{split.file_size(row)}"


def _hash_name(path: str) -> str:
    return _hash(os.fsencode(os.path.basename(path)))


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def require_same_images(before: Mapping[str, Any], now: Mapping[str, Any], *, where: str) -> None:
    """Check that a resumed run has the images that it started with.

    Args:
        before: result of `describe_images` when the run started, or those of its entries that must match.
        now: result of `describe_images` now.
        where: location of the images, for the message.

    Raises:
        DataError: if they differ.
    """
    old, new = before.get("class_names", now["class_names"]), now["class_names"]
    if old != new:
        number, was, is_now = next(
            (n, *pair)
            for n, pair in enumerate(itertools.zip_longest(old, new, fillvalue="absent"))
            if pair[0] != pair[1]
        )
        lengths = ":" if len(new) == len(old) else f" has {len(new)} classes instead of {len(old)}:"
        raise DataError(
            f"a resumed run must have the classes that it started with, in the same order; {where}{lengths} "
            f"class {number} is {is_now} instead of {was}. A new run can start from its weights: "
            "model.weights=RUN_DIR"
        )
    differing = [name for name in ("fingerprint", "contents") if before.get(name, now[name]) != now[name]]
    if not differing:
        return
    first = before.get("counts", {})
    counts = [
        f"{name} has {now['counts'].get(name, 0)} instead of {first.get(name, 0)}"
        for name in {**first, **now["counts"]}
        if now["counts"].get(name) != first.get(name)
    ]
    changed = "paths, labels or sizes" if "fingerprint" in differing else "contents"
    raise DataError(
        f"a resumed run must have the images that it started with; in {where} "
        f"{'the number of images differs: ' + ', '.join(counts) if counts else f'the {changed} of images differ'}. "
        "To resume anyway, add resume_on_changed_data=true"
    )
