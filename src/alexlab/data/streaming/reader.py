"""Images in shards: tar files in a folder or an object store, for data that no disk of one's own holds. Imports no torch.

A place with shards has
    train-000000.tar ...       files as they were, 000000012.jpg, and their labels, 000000012.cls: WebDataset's convention
    train.npz, val.npz ...     of each image its label, its path in the folder that it comes from, and where it lies
    index.json                 the classes, and of every other file its size and SHA-256
"""

import contextlib
import json
import os
import re
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexlab.data.decode import decode_bytes
from alexlab.data.discovery import check_val_split
from alexlab.data.image_file import Decoding
from alexlab.data.paths import PathArray
from alexlab.data.splits import Split, Splits
from alexlab.data.streaming.fetcher import is_cached
from alexlab.data.streaming.store import Store, check_location, is_url
from alexlab.errors import ConfigError, DataError

INDEX, VERSION = "index.json", 1
KIND = "alexlab shards"
USED_S = 10.0  # after which a copy that is in use is marked as used again
TRIES = 3  # to open a copy that others remove
SPARE = 4  # shards that the cache holds beyond those that are mixed and prefetched: of the validation, say


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How shards are read, the keys of `data.stream`.

    Args:
        shuffle_shards: so many shards are read at a time, their images mixed.
        prefetch_shards: so many further ones are fetched meanwhile.
        cache_gb: of the copies that are kept of one place, 10^9 bytes.
    """

    shuffle_shards: int = 16
    prefetch_shards: int = 4
    cache_gb: float = 50.0

    def __post_init__(self) -> None:
        if self.shuffle_shards < 1 or self.prefetch_shards < 0 or self.cache_gb <= 0:
            raise ConfigError(
                "data.stream must have shuffle_shards of at least 1, prefetch_shards of at least 0 and a positive cache_gb; "
                f"got {self.shuffle_shards}, {self.prefetch_shards} and {self.cache_gb}"
            )


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Args:
        name: of the file.
        size: in bytes.
        sha256: of its content.
    """

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        """Raises ValueError for a name that would lead elsewhere: an index may be a stranger's."""
        fits = re.fullmatch(r"\w[\w.-]*", self.name) and re.fullmatch(r"[0-9a-f]{64}", self.sha256)
        if not fits or not isinstance(self.size, int) or self.size < 0:
            raise ValueError(f"{self.name!r} of {self.size!r} bytes")

    @property
    def file(self) -> tuple[str, str, int, str]:
        """As `Store` takes it; its copy has a name that no other content has."""
        return self.name, f"{self.sha256[:16]}-{self.name}", self.size, self.sha256


class ShardedImages:
    """The images of one split, by number.

    Args:
        store: where the shards are.
        shards: in the order of the images.
        shard, starts, lengths: of each image the number of its shard and where it lies in it, int64 (N,).
        paths: of the images, for messages.
        decoding: the settings by which files become pixels.
        prefetch_shards: shards that are fetched before they are asked for.
        shuffle_shards: shards whose images are mixed in a training.
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
        decoding: Decoding,
        prefetch_shards: int,
        shuffle_shards: int,
    ) -> None:
        self.store, self.shards = store, shards
        self.shard, self.starts, self.lengths, self.paths = shard, starts, lengths, paths
        self.decoding, self.prefetch_shards, self.shuffle_shards = decoding, prefetch_shards, shuffle_shards
        self.used_s = np.full(len(shards), -np.inf)  # when this process has marked each as used
        self.set_shard_order(np.arange(len(shards)))

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, row: int) -> np.ndarray:
        """The picture, uint8 (H, W, channels).

        Raises:
            DataError: when its shard is missing or damaged.
            ImageError: when it cannot be decoded.
        """
        path = f"{self.store.place(self.shards[self.shard[row]].name)}: {self.paths[row]}"
        return decode_bytes(self.content(row), self.decoding, path)

    def content(self, row: int) -> bytes:
        """The file of an image."""
        number = int(self.shard[row])
        self._come_to(number)
        file = self._opened(number)
        try:
            content = os.pread(file, int(self.lengths[row]), int(self.starts[row]))
        finally:
            os.close(file)
        if len(content) != self.lengths[row]:
            raise DataError(
                f"the shard {self.store.place(self.shards[number].name)} has ended within {self.paths[row]}"
            )
        return content

    def set_shard_order(self, order: np.ndarray) -> None:
        """Tells in which order shards will be come to, by number, so that the next ones are fetched in time."""
        self.order, self.newest = order, -1
        self.places = np.full(len(self.shards), len(order))
        self.places[order] = np.arange(len(order))

    def _come_to(self, number: int) -> None:
        """Has the shards fetched that come next, when this one is the newest so far, or the first of another pass."""
        place = int(self.places[number])
        if self.newest - self.shuffle_shards - 1 <= place <= self.newest:
            return
        self.newest = place
        self.store.prefetch(
            self.shards[each].file for each in self.order[place + 1 : place + 1 + self.prefetch_shards].tolist()
        )

    def _opened(self, number: int) -> int:
        name, target, size, sha256 = self.shards[number].file
        path = self.store.folder / target
        for _ in range(TRIES):
            try:
                if is_cached(path, size):
                    file = os.open(path, os.O_RDONLY)
                    self._mark(number, path)
                    return file
            except FileNotFoundError:  # removed in this moment, to make room
                pass
            self.store.get(name, target, size, sha256)
        raise DataError(
            f"the copies of {TRIES} shards in a row were removed before they were read; data.stream.cache_gb must be larger"
        )

    def _mark(self, number: int, path: Path) -> None:
        """Marks a copy as used, now and then: the one that was not used for longest makes room for others."""
        if is_url(self.store.url) and time.monotonic() - self.used_s[number] > USED_S:
            self.used_s[number] = time.monotonic()
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)


def find_sharded_splits(
    url: str,
    stream: StreamConfig,
    *,
    decoding: Decoding,
    cache_dir: Path,
    val_split: str = "val",
    key: str = "data.url",
) -> Splits:
    """The splits that lie in shards at a place.

    Args:
        url: of the place, or its folder.
        stream: how they are read.
        decoding: the settings by which files become pixels.
        cache_dir: where copies are kept.
        val_split: `val`, or `test` to validate on the test split.
        key: of the config, for messages.

    Raises:
        DataError: when there is no index, or what it names is missing or damaged.
        ConfigError: when the cache is too small.
    """
    check_location(url, key)
    check_val_split(val_split)
    store = Store(url, cache_dir, int(stream.cache_gb * 1e9))
    index = _index(store, key)
    try:
        _check_free_space(index, stream)
        classes = [str(name) for name in index["classes"]]
        found = {
            name: _split(store, name, index["splits"][name], classes, stream, decoding)
            for name in ("train", "val", "test")
            if name in index["splits"] or name != "test"
        }
        notes = [str(note) for note in index["notes"]]
    except (DataError, ConfigError):
        raise
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{store.place(INDEX)}, or a table that it names, is damaged: {error!r}") from error
    store.close()  # each process that reads images starts another
    train, val, test = found["train"], found["val"], found.get("test")
    counts = [f"{len(index['splits'][name]['shards'])} of {name}" for name in found]
    notes.append(f"the images lie in shards: {', '.join(counts)}")
    if val_split == "test":
        if test is None:
            raise DataError(f"data.val_split=test needs a test split, which {url} does not have")
        val, test = test, None
        notes.append("validating on the test split (data.val_split=test): its scores are no estimate for unseen images")
    others = {"val": val} | ({} if test is None else {"test": test})
    missing = [note for name, split in others.items() for note in split.missing_class_notes(name)]
    return Splits(train, val, test, notes=(*notes, *missing))


def _index(store: Store, key: str) -> dict[str, Any]:
    try:
        path = store.get(INDEX, INDEX) if is_url(store.url) else Path(store.url, INDEX)
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{INDEX} is damaged: {error}") from error
        if not isinstance(found, dict) or found.get("kind") != KIND:
            raise DataError(f"{store.place(INDEX)} is none of its indexes")
    except (DataError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{key} must be a place that python src/prepare.py action=shard has written; got {store.url}: {reason}"
        ) from error
    if found["version"] != VERSION:
        raise DataError(f"the shards of {store.url} are of another version of this program; write them anew")
    return found


def _check_free_space(index: Mapping[str, Any], stream: StreamConfig) -> None:
    """Raises ConfigError when the shards that are read at a time have no room in the cache."""
    sizes = [size for about in index["splits"].values() for _, size, _, _ in about["shards"]]
    needed = min(sum(sizes), (stream.shuffle_shards + stream.prefetch_shards + SPARE) * max(sizes))
    if needed > stream.cache_gb * 1e9:
        raise ConfigError(
            f"data.stream.cache_gb must hold shuffle_shards + prefetch_shards + {SPARE} shards of {max(sizes) / 1e9:.3g} GB, "
            f"{needed / 1e9:.3g} GB; got {stream.cache_gb:g}"
        )


def _split(
    store: Store, name: str, about: Mapping[str, Any], classes: Sequence[str], stream: StreamConfig, decoding: Decoding
) -> Split:
    shards = [Shard(name, size, sha256) for name, size, sha256, _ in about["shards"]]
    with np.load(store.get(*Shard(*about["table"]).file)) as table:
        arrays = {name: table[name] for name in ("labels", "paths", "starts", "lengths")}
    paths = PathArray.from_block(arrays["paths"])
    shard = np.repeat(np.arange(len(shards)), [count for _, _, _, count in about["shards"]])
    starts, lengths, labels = (arrays[name] for name in ("starts", "lengths", "labels"))
    ends = np.array([each.size for each in shards])[shard]
    inside = (starts >= 0) & (lengths >= 0) & (lengths <= ends) & (starts <= ends - lengths)
    if not len(shard) == len(paths) == len(labels) or not (inside & (labels >= 0) & (labels < len(classes))).all():
        raise ValueError(f"the table of {name}")
    images = ShardedImages(
        store,
        shards,
        shard=shard,
        starts=starts,
        lengths=lengths,
        paths=paths,
        decoding=decoding,
        prefetch_shards=stream.prefetch_shards,
        shuffle_shards=stream.shuffle_shards,
    )
    return Split(store.url, classes, paths, labels, images=images, lengths=lengths, shuffled=name == "train")
