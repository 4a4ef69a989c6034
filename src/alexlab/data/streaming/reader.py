"""Images read from shards: tar files in a folder or an object store, fetched and cached one shard at a time."""

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexlab.data.crop import CropRule
from alexlab.data.decode import decode_bytes
from alexlab.data.image_file import Decoding
from alexlab.data.streaming.fetcher import is_cached
from alexlab.data.streaming.store import Store, is_url
from alexlab.errors import DataError

TOUCH_INTERVAL_S = 10.0  # between updates of the time of last use of a cached shard
MAX_ATTEMPTS = 3  # to open a cached shard that other processes evict


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Args:
        name: file name.
        size: size in bytes.
        sha256: SHA-256 of its content, hexadecimal.

    Raises:
        ValueError: if the name is a path: an index is untrusted.
    """

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        valid = re.fullmatch(r"\w[\w.-]*", self.name) and re.fullmatch(r"[0-9a-f]{64}", self.sha256)
        if not valid or not isinstance(self.size, int) or self.size < 0:
            raise ValueError(f"{self.name!r} of {self.size!r} bytes")

    @property
    def file(self) -> tuple[str, str, int, str]:
        """Arguments of `Store.get`; the name of the cached copy is unique to the content."""
        return self.name, f"{self.sha256[:16]}-{self.name}", self.size, self.sha256


class ShardedImages:
    """The images of one split, indexed by row.

    Args:
        store: store of the shards.
        shards: shards in the order of the images.
        shard: shard index of each image, int64 (N,).
        starts: offset of each image in its shard in bytes, int64 (N,).
        lengths: size of each image file in bytes, int64 (N,).
        paths: path of each image in the original folder, for messages.
        prefetch_shards: number of shards to fetch ahead.
        shuffle_shards: number of shards whose images are shuffled together in training.
    """

    def __init__(
        self,
        store: Store,
        shards: Sequence[Shard],
        *,
        shard: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        paths: Sequence[str],
        prefetch_shards: int,
        shuffle_shards: int,
    ) -> None:
        self.store, self.shards = store, shards
        self.shard, self.starts, self.lengths, self.paths = shard, starts, lengths, paths
        self.prefetch_shards, self.shuffle_shards = prefetch_shards, shuffle_shards
        self.touched_s = np.full(len(shards), -np.inf)  # when this process last updated the time of use of each shard
        self.set_shard_order(np.arange(len(shards)))

    def __len__(self) -> int:
        return len(self.shard)

    def load(self, row: int, decoding: Decoding, crop: CropRule | None = None) -> np.ndarray:
        """Return an image as `alexlab.data.decode.decode` does.

        Raises:
            DataError: if its shard is missing or corrupt.
            ImageError: if it cannot be decoded.
        """
        path = f"{self.store.location(self.shards[self.shard[row]].name)}: {self.paths[row]}"
        return decode_bytes(self.content(row), decoding, path, crop=crop)

    def content(self, row: int) -> bytes:
        """Return the file content of an image."""
        number = int(self.shard[row])
        self._prefetch_after(number)
        file = self._open(number)
        try:
            content = os.pread(file, int(self.lengths[row]), int(self.starts[row]))
        finally:
            os.close(file)
        if len(content) != self.lengths[row]:
            shard = self.store.location(self.shards[number].name)
            raise DataError(
                f"the shard {shard} is incomplete, it ends within {self.paths[row]}; write the shards again"
            )
        return content

    def set_shard_order(self, order: np.ndarray) -> None:
        """Set the order in which shards will be read, as indices, for prefetching."""
        self.order, self.position = order, -1
        self.position_of = np.full(len(self.shards), len(order))
        self.position_of[order] = np.arange(len(order))

    def _prefetch_after(self, number: int) -> None:
        """Fetch the shards after this one if it is the furthest one so far, or the first one of a new epoch."""
        position = int(self.position_of[number])
        if self.position - self.shuffle_shards - 1 <= position <= self.position:
            return
        self.position = position
        upcoming = self.order[position + 1 : position + 1 + self.prefetch_shards].tolist()
        self.store.prefetch(self.shards[index].file for index in upcoming)

    def _open(self, number: int) -> int:
        """Return a file descriptor of the cached copy of a shard."""
        name, target, size, sha256 = self.shards[number].file
        path = self.store.folder / target
        for _ in range(MAX_ATTEMPTS):
            try:
                if is_cached(path, size):
                    file = os.open(path, os.O_RDONLY)
                    self._touch(number, path)
                    return file
            except FileNotFoundError:  # evicted between the check and the open
                pass
            self.store.get(name, target, size, sha256)
        raise DataError(
            f"the cached copy of {self.store.location(name)} was evicted {MAX_ATTEMPTS} times before it could be read; "
            "data.stream.cache_gb must be larger"
        )

    def _touch(self, number: int, path: Path) -> None:
        """Mark a copy as used from time to time, as the least recently used one is evicted first."""
        if is_url(self.store.url) and time.monotonic() - self.touched_s[number] > TOUCH_INTERVAL_S:
            self.touched_s[number] = time.monotonic()
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
