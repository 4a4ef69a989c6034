"""Index of a location with shards, and the splits that it describes.

A location with shards has
    train-000000.tar ...       image files, 000000012.jpg, and their labels, 000000012.cls: the WebDataset convention
    train.npz, val.npz ...     label, original path, offset and size of each image
    index.json                 class names, and size and SHA-256 of every other file
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexlab.data.discovery import check_val_split
from alexlab.data.paths import PathArray
from alexlab.data.splits import Split, Splits
from alexlab.data.streaming.reader import Shard, ShardedImages
from alexlab.data.streaming.store import Store, check_location, is_url
from alexlab.errors import ConfigError, DataError
from alexlab.output.command_line import command_line

INDEX, VERSION = "index.json", 1
KEY = "data.url"
KIND = "alexlab shards"
SPARE_SHARDS = 4  # shards in the cache besides those that are shuffled and prefetched, for example of the validation


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Shuffling, prefetching and caching of shards, the keys of `data.stream`.

    Args:
        shuffle_shards: number of shards that are read at the same time, their images shuffled together.
        prefetch_shards: number of further shards to fetch ahead.
        cache_gb: size limit of the cached copies of one location, 10^9 bytes.
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

    @property
    def cache_bytes(self) -> int:
        """The size limit in whole bytes. Rounded: the product of 1e9 and a size divided by it is not always that size."""
        return round(self.cache_gb * 1e9)


def find_sharded_splits(
    url: str,
    stream: StreamConfig,
    *,
    cache_dir: Path,
    val_split: str = "val",
) -> Splits:
    """Return the splits of a location with shards.

    Args:
        url: URL of the location, or a folder.
        stream: shuffling, prefetching and caching.
        cache_dir: folder of cached copies.
        val_split: `val`, or `test` to validate on the test split.

    Raises:
        DataError: if the index or one of its tables is missing or corrupt.
        ConfigError: if the cache is too small.
    """
    check_location(url, KEY)
    check_val_split(val_split)
    store = Store(url, cache_dir, stream.cache_bytes)
    index = _read_index(store)
    try:
        _check_cache_size(index, stream)
        classes = [str(name) for name in index["classes"]]
        splits = {
            name: _split(store, name, index["splits"][name], classes, stream)
            for name in ("train", "val", "test")
            if name in index["splits"] or name != "test"
        }
        notes = [str(note) for note in index["notes"]]
    except (DataError, ConfigError):
        raise
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{store.location(INDEX)} or one of its tables is corrupt ({error!r}); write the shards again"
        ) from error
    store.close()  # each process that reads images starts its own fetcher
    counts = [f"{len(index['splits'][name]['shards'])} {name}" for name in splits]
    notes.append(f"images are read from shards: {', '.join(counts)}")
    return _combine(splits, notes, val_split, url)


def _combine(splits: Mapping[str, Split], notes: Sequence[str], val_split: str, url: str) -> Splits:
    """Return the splits with their notes, with the test split as the validation split if `val_split` is `test`."""
    train, val, test = splits["train"], splits["val"], splits.get("test")
    swapped: tuple[str, ...] = ()
    if val_split == "test":
        if test is None:
            raise DataError(f"data.val_split=test needs a test split; {url} has none")
        val, test = test, None
        swapped = ("validating on the test split (data.val_split=test): its scores do not estimate unseen images",)
    return Splits(train, val, test, notes=(*notes, *swapped)).with_missing_class_notes()


def _read_index(store: Store) -> dict[str, Any]:
    try:
        path = store.get(INDEX, INDEX) if is_url(store.url) else Path(store.url, INDEX)
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{INDEX} is corrupt ({error}); write the shards again") from error
        if not isinstance(index, dict) or index.get("kind") != KIND:
            raise DataError(f"{store.location(INDEX)} is not an alexlab shard index")
    except (DataError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{KEY} must be a location written by {command_line('prepare', 'action=shard')}; got {store.url}: {reason}"
        ) from error
    if index.get("version") != VERSION:
        raise DataError(f"the shards of {store.url} were written by another version of alexlab; write them again")
    return index


def _check_cache_size(index: Mapping[str, Any], stream: StreamConfig) -> None:
    """Raise ConfigError if the shards that are used at the same time do not fit into the cache."""
    sizes = [size for entry in index["splits"].values() for _, size, _, _ in entry["shards"]]
    needed = min(sum(sizes), (stream.shuffle_shards + stream.prefetch_shards + SPARE_SHARDS) * max(sizes))
    if needed > stream.cache_bytes:
        raise ConfigError(
            f"data.stream.cache_gb must hold shuffle_shards + prefetch_shards + {SPARE_SHARDS} shards of "
            f"{max(sizes):,} bytes, {needed / 1e9} GB; got {stream.cache_gb}"
        )


def _split(store: Store, name: str, entry: Mapping[str, Any], classes: Sequence[str], stream: StreamConfig) -> Split:
    """Return a split of the index. Everything read here is untrusted, so offsets and labels are checked.

    Raises:
        DataError: if the table of the split is missing or corrupt.
        ValueError: if the table does not fit the shards.
    """
    shards = [Shard(name, size, sha256) for name, size, sha256, _ in entry["shards"]]
    with np.load(store.get(*Shard(*entry["table"]).file)) as table:
        arrays = {name: table[name] for name in ("labels", "paths", "starts", "lengths")}
    paths = PathArray.from_block(arrays["paths"])
    shard = np.repeat(np.arange(len(shards)), [count for _, _, _, count in entry["shards"]])
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
        prefetch_shards=stream.prefetch_shards,
        shuffle_shards=stream.shuffle_shards,
    )
    return Split(store.url, classes, paths, labels, images=images, lengths=lengths, shuffled=name == "train")
