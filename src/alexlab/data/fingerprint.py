"""Fingerprint of a dataset: its classes, paths, labels, sizes and a sample of its contents."""

import hashlib
import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from alexlab.data.image_file import DEFAULT_DECODING, read_image
from alexlab.data.paths import TERMINATOR, PathArray
from alexlab.data.splits import Splits
from alexlab.errors import DataError, ImageError

MAX_SIZES = 10_000  # files of a split whose size goes into the fingerprint, evenly spaced
MAX_CONTENT = 64_000_000  # bytes of a split whose content goes into the fingerprint: 0.1 s


def describe_images(splits: Splits) -> dict[str, Any]:
    """Return the counts and classes of a dataset, a hash of its paths, labels and sizes, and one of its contents.

    The latter covers at most MAX_CONTENT bytes of each split, in evenly spaced files.
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
                contents.update(_content(split.file_path(row)))
    return {
        "counts": {name: len(split) for name, split in splits.items()},
        "classes": len(splits.classes),
        "class_names": list(splits.classes),
        "fingerprint": digest.hexdigest(),
        "contents": contents.hexdigest(),
    }


def _content(path: str) -> bytes:
    """Return the bytes of an image file; b"" if it is unreadable, which is reported when the run loads it."""
    try:
        return read_image(path, DEFAULT_DECODING)
    except ImageError:
        return b""


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
