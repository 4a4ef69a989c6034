"""Config node `data`: the images, their splits and their loading."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from alexlab.data.discovery import find_splits
from alexlab.data.folds import select_fold, select_fraction
from alexlab.data.image_file import MAX_MEGAPIXELS, Decoding
from alexlab.data.manifest_splits import add_manifest_hashes
from alexlab.data.sources.digits import write_digits
from alexlab.data.sources.synthetic import LARGE, write_synthetic_photos
from alexlab.data.splits import Splits
from alexlab.data.streaming.index import StreamConfig, find_sharded_splits
from alexlab.data.streaming.store import is_url
from alexlab.distributed.hardware import num_cores
from alexlab.errors import ConfigError
from alexlab.output.escape import shown

MAX_WORKERS = 1024  # per rank; more DataLoader workers than cores only wait for one another
GENERATORS: dict[str, Callable[[str], Any]] = {
    "digits": write_digits,
    "photographs": write_synthetic_photos,
    "photographs_12mp": partial(write_synthetic_photos, settings=LARGE),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Dataset and its loading.

    Args:
        root: folder or manifest of the dataset in one of the layouts of `alexlab.data.discovery`, relative to the working
            directory; None with `url`.
        url: folder, or prefix in an object store, of the shards that `prepare.py action=shard` has written.
        stream: see `alexlab.data.streaming.index.StreamConfig`.
        image_size: height and width of the network's input, in pixels.
        channels: 3 for RGB, 1 for grey.
        mean, std: per-channel statistics of values in [0, 1]; three numbers are averaged for one channel. None measures them on
            the training split.
        mean_image: subtract the mean image of the training split instead of `mean`, which must be None or 0: the mean of each
            pixel of the evaluation's view, as in the 2012 paper. Runs measure it once and store it in their checkpoints.
        batch_size: images of one optimizer step, over all devices and accumulated batches.
        num_workers: DataLoader workers per rank; None for one per core of the rank, at most 8.
        val_fraction, test_fraction: fraction of each class, 0..1, that becomes val and test if the dataset lacks them.
        val_split: `val`, or `test` to validate on the test split.
        split_seed: seed for splitting a dataset that lacks splits, and for `folds` and `fraction`.
        group: regular expression that finds a group, such as a person, in each path; a group is not divided between splits or
            folds. See `alexlab.data.hash_split.find_groups`.
        folds: number of folds of a cross-validation over the training and validation images; None for no folds.
        fold: index of the validation fold, from 0.
        fraction: fraction of the training images of each class to train on, 0..1.
        splits: folder of each split inside `root`, where `.` is `root` itself; all null to recognize them by their names.
        sampler: `shuffle` for every image once per epoch; `balanced` to draw with replacement, every class equally often.
        cache: `packed` to decode every image once, to `pack.size`; `device` to keep these images in the memory of each device
            too, and crop them there; None to decode the files each time.
        pack: see `alexlab.data.cache.pack.PackConfig`.
        on_error: `raise` to stop at an unreadable image, `skip` to log it and continue without it.
        cache_dir: folder for packs and for cached lists of files.
        preview: number of training images to draw as the network will see them, in preview.png and TensorBoard.
        max_megapixels, intensity_range, jpeg_scaling: see `alexlab.data.image_file.Decoding`.
        manifest: manifest with the required SHA-256 of every image, as `prepare.py action=check` writes it.
        generate: dataset to write if `root` does not exist: `digits`, `photographs` or `photographs_12mp` (synthetic, for
            benchmarks), or None.
        dataset: config node of a dataset class, or the class with its arguments, see
            `alexlab.data.own_dataset.dataset_splits`; None for files.
    """

    root: str | None
    image_size: int
    channels: int
    mean: Sequence[float] | None
    std: Sequence[float] | None
    batch_size: int
    mean_image: bool = False
    num_workers: int | None = None
    url: str | None = None
    stream: Mapping[str, Any] = field(default_factory=dict)
    val_fraction: float = 0.2
    test_fraction: float = 0.0
    val_split: str = "val"
    split_seed: int = 0
    group: str | None = None
    folds: int | None = None
    fold: int | None = None
    fraction: float = 1.0
    splits: Mapping[str, str | None] = field(default_factory=dict)
    sampler: str = "shuffle"
    cache: str | None = None
    pack: Mapping[str, Any] = field(default_factory=dict)
    on_error: str = "raise"
    max_megapixels: float = MAX_MEGAPIXELS
    intensity_range: Sequence[float] | None = None
    jpeg_scaling: bool = True
    cache_dir: str = "data/cache"
    preview: int = 0
    manifest: str | None = None
    generate: str | None = None
    dataset: Mapping[str, Any] | partial[Any] | None = None

    def __post_init__(self) -> None:
        if not self.root and not self.url and self.dataset is None:
            raise ConfigError("data.root must be a folder of images; set data.root=DIR")
        self._check_url()
        self._check_folds()
        if self.dataset is not None:
            for name in ("root", "url", "cache", "manifest", "generate", "group"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"data.{name} must be null with data.dataset; got {getattr(self, name)!r}")
            if self.val_split != "val":
                raise ConfigError(f"data.val_split must be val with data.dataset; got {self.val_split!r}")
        self.decoding  # noqa: B018 - Decoding checks its values
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not (
                len(values) in (1, 3) and all(0 <= value <= 1 for value in values) and (name == "mean" or all(values))
            ):
                least = "from 0 to 1" if name == "mean" else "above 0 and at most 1"
                raise ConfigError(
                    f"data.{name} must be one or three numbers {least} (pixels are divided by 255), or null to measure; got "
                    f"{list(values)}"
                )
        if self.mean_image and any(self.mean or ()):
            raise ConfigError(f"data.mean must be null with data.mean_image=true; got {list(self.mean or ())}")
        if self.preview < 0:
            raise ConfigError(f"data.preview must be a number of images; got {self.preview}")
        if self.sampler not in ("shuffle", "balanced"):
            raise ConfigError(f"data.sampler must be shuffle or balanced; got {self.sampler!r}")
        if self.cache not in (None, "packed", "device"):
            raise ConfigError(f"data.cache must be null, packed or device; got {self.cache!r}")
        if self.on_error not in ("raise", "skip"):
            raise ConfigError(f"data.on_error must be raise or skip; got {self.on_error!r}")
        if self.generate is not None and self.generate not in GENERATORS:
            raise ConfigError(f"data.generate must be null or one of {', '.join(GENERATORS)}; got {self.generate!r}")
        if self.num_workers is not None and not 0 <= self.num_workers <= MAX_WORKERS:
            raise ConfigError(
                f"data.num_workers must be null or a number of processes from 0 to {MAX_WORKERS}; got {self.num_workers}"
            )
        for name in ("batch_size", "image_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"data.{name} must be an integer of at least 1; got {getattr(self, name)}")

    def _check_folds(self) -> None:
        if self.folds is None and self.fold is not None:
            raise ConfigError(f"data.folds must be the number of folds with data.fold={self.fold}; got null")
        if self.folds is not None:
            if self.folds < 2:
                raise ConfigError(f"data.folds must be null or at least 2; got {self.folds}")
            if self.fold is None or not 0 <= self.fold < self.folds:
                given = "null" if self.fold is None else self.fold
                raise ConfigError(
                    f"data.fold must be the fold that validates, 0 to {self.folds - 1}; got {given} "
                    f"(all of them: -m 'data.fold=range({self.folds})')"
                )
            if self.val_split != "val":
                raise ConfigError(f"data.val_split must be val with data.folds; got {self.val_split!r}")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"data.fraction must be above 0 and at most 1; got {self.fraction}")

    def _check_url(self) -> None:
        if self.root and is_url(self.root):
            raise ConfigError(f"data.root must be a folder; shards are read with data=streaming data.url={self.root}")
        if self.url is None:
            return
        required: dict[str, Any] = {"cache": None, "sampler": "shuffle", "manifest": None, "root": None}
        required |= {"group": None, "folds": None, "fraction": 1.0}
        for name, value in required.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"data.{name} must be {'null' if value is None else value} with data.url, whose images are read shard "
                    f"by shard; got {getattr(self, name)!r}"
                )
        if any(self.splits.values()):
            raise ConfigError(
                f"data.splits must be null with data.url, whose splits are fixed; got {dict(self.splits)}"
            )

    @property
    def decoding(self) -> Decoding:
        """Decoding settings."""
        return Decoding(
            channels=self.channels,
            max_megapixels=self.max_megapixels,
            intensity_range=self.intensity_range,
            jpeg_scaling=self.jpeg_scaling,
        )

    @property
    def location(self) -> str:
        """Folder or URL of the images, for messages."""
        return str(self.url or self.root or "data.dataset")

    def find_splits(self) -> Splits:
        """Find the files of each split; write the dataset first if it is missing and can be generated.

        Raises:
            DataError: if the dataset is missing or invalid.
        """
        splits = self.find_undivided_splits()
        options: dict[str, Any] = {"seed": self.split_seed, "group": self.group}
        if self.folds is not None:
            assert self.fold is not None
            splits = select_fold(splits, self.fold, self.folds, **options)
        elif self.group is not None and self.fraction == 1 and not splits.auto_split:
            unused = "data.group is not used without data.folds or data.fraction"
            note = f"{unused}: {shown(self.location)} has a val split"
            splits = replace(splits, notes=(*splits.notes, note))
        if self.test_fraction and splits.test is None and self.val_split == "val":
            note = f"data.test_fraction={self.test_fraction:g} is not used: only folders are split into train, val and test"
            splits = replace(splits, notes=(*splits.notes, note))
        if self.fraction < 1:
            splits = select_fraction(splits, self.fraction, **options)
        return splits if self.manifest is None else add_manifest_hashes(splits, self.manifest)

    def find_undivided_splits(self) -> Splits:
        """Return the splits of the dataset, before folds and fractions."""
        if self.url is not None:
            return find_sharded_splits(
                self.url,
                StreamConfig(**self.stream),
                cache_dir=Path(self.cache_dir),
                val_split=self.val_split,
            )
        if self.dataset is not None:
            from alexlab.data.own_dataset import dataset_splits  # imports torch

            assert isinstance(self.dataset, partial), "alexlab.config.data.data_config has located it"
            return dataset_splits(self.dataset, val_fraction=self.val_fraction, split_seed=self.split_seed)
        assert self.root is not None
        if self.generate is not None and not os.path.exists(self.root):
            GENERATORS[self.generate](self.root)
        return find_splits(
            self.root,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            val_split=self.val_split,
            split_seed=self.split_seed,
            group=self.group,
            folders=self.splits,
            cache_dir=Path(self.cache_dir),
        )

    def per_channel(self, values: Sequence[float] | None) -> list[float]:
        """Return one number per channel: three are averaged for one channel, one is repeated for three."""
        assert values is not None, "measured before the run is built"
        if len(values) == self.channels:
            return list(values)
        return [sum(values) / len(values)] * self.channels

    def workers_per_rank(self, num_ranks: int) -> int:
        """Return the number of DataLoader workers of each of `num_ranks` ranks on this node."""
        if self.num_workers is not None:
            return self.num_workers
        return min(8, max(1, num_cores() // num_ranks))
