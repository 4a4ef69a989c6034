"""Public datasets, downloaded and verified by torchvision and written as trees of image files."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

from PIL import Image
from torchvision import datasets

from alexlab import compat
from alexlab.distributed.hardware import num_cores
from alexlab.errors import ConfigError, DataError
from alexlab.output.progress import track
from alexlab.records.atomic import atomic_dir
from alexlab.records.disk_errors import disk_error, disk_errors


@dataclass(frozen=True)
class DownloadableDataset:
    """A dataset that torchvision can download.

    Args:
        open: function from (download folder, torchvision's name of a split) to a torchvision dataset, which it downloads.
        splits: torchvision's name of each split.
        counts: number of images of each split.
        names: function from a torchvision dataset to its class names.
        item: function from a torchvision dataset and an index to (image file, or image if it has no file; label).
    """

    open: Callable[[str, str], Any]
    splits: Mapping[str, str]
    counts: Mapping[str, int]
    names: Callable[[Any], Sequence[str]] = lambda dataset: dataset.classes
    item: Callable[[Any, int], tuple[Path | Image.Image, int]] = lambda dataset, index: dataset[index]


def _mnist(kind: Any, names: Callable[[Any], Sequence[str]]) -> DownloadableDataset:
    return DownloadableDataset(
        open=lambda root, split: kind(root, train=split == "train", download=True),
        splits={"train": "train", "test": "test"},
        counts={"train": 60_000, "test": 10_000},
        names=names,
    )


def _imagenette(size: str) -> DownloadableDataset:
    return DownloadableDataset(
        open=lambda root, split: datasets.Imagenette(root, split, size, download=True, loader=Path),
        splits={"train": "train", "val": "val"},
        counts={"train": 9469, "val": 3925},
        names=lambda dataset: [names[0] for names in dataset.classes],
    )


DATASETS = {
    "mnist": _mnist(datasets.MNIST, lambda dataset: [str(digit) for digit in range(10)]),
    "fashion_mnist": _mnist(datasets.FashionMNIST, lambda dataset: dataset.classes),
    "cifar10": DownloadableDataset(
        open=lambda root, split: datasets.CIFAR10(root, train=split == "train", download=True),
        splits={"train": "train", "test": "test"},
        counts={"train": 50_000, "test": 10_000},
    ),
    "stl10": DownloadableDataset(
        open=lambda root, split: datasets.STL10(root, split, download=True),
        splits={"train": "train", "test": "test"},
        counts={"train": 5000, "test": 8000},
    ),
    "flowers102": DownloadableDataset(
        open=lambda root, split: datasets.Flowers102(root, split, download=True, loader=Path),
        splits={"train": "train", "val": "val", "test": "test"},
        counts={"train": 1020, "val": 1020, "test": 6149},
    ),
    "oxford_pets": DownloadableDataset(
        open=lambda root, split: datasets.OxfordIIITPet(root, split, download=True),
        splits={"train": "trainval", "test": "test"},
        counts={"train": 3680, "test": 3669},
        item=compat.pet_item,
    ),
    "imagenette": _imagenette("full"),
    "imagenette_320": _imagenette("320px"),
    "imagenette_160": _imagenette("160px"),
}


def download_dataset(name: str, out: Path, downloads: Path) -> dict[str, int]:
    """Download a dataset, unless its files are there already, and write `out/<split>/<class>/<index>.<png or jpg>`.

    Images without files of their own are written as PNG; image files are copied unchanged. `out` is written all or nothing.

    Args:
        name: key of DATASETS.
        out: folder to create.
        downloads: folder of the original files.

    Returns:
        The number of images of each split.

    Raises:
        ConfigError: if the name is unknown, or `out` exists.
        DataError: if the dataset cannot be downloaded or is incomplete.
    """
    if name not in DATASETS:
        raise ConfigError(f"dataset must be one of {', '.join(DATASETS)}; got {name!r}")
    if out.exists():
        raise ConfigError(f"out must be a new folder; {out} exists")
    source = DATASETS[name]
    opened = {split: _open(name, split, downloads) for split in source.counts}
    for split, dataset in opened.items():
        if len(dataset) != source.counts[split]:
            raise DataError(
                f"{name} must have {source.counts[split]} {split} images; {downloads} holds {len(dataset)}. "
                "Remove its files there and run the command again"
            )
    with disk_errors(out), atomic_dir(out) as folder:
        for split, dataset in opened.items():
            _write_split(dataset, source, folder / split, f"{name}, {split}")
    return {split: len(dataset) for split, dataset in opened.items()}


def _open(name: str, split: str, downloads: Path) -> Any:
    """Return the dataset of torchvision, which downloads the missing files and verifies them by their MD5.

    Raises:
        DiskError: if the disk is full.
        DataError: if a download fails.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    source = DATASETS[name]
    try:
        return source.open(str(downloads), source.splits[split])
    except (URLError, OSError, RuntimeError) as error:
        full = disk_error(error, downloads) if isinstance(error, OSError) and not isinstance(error, URLError) else None
        raise full or DataError(
            f"cannot download {name} to {downloads}: {' '.join(str(error).split())}. Run the command again with network "
            "access, or copy this folder from a machine on which it has succeeded"
        ) from error


def _write_split(dataset: Any, source: DownloadableDataset, folder: Path, title: str) -> None:
    names = [re.sub(r"[/\\:\0]+", "-", name) for name in source.names(dataset)]
    for name in names:
        (folder / name).mkdir(parents=True)

    def write(index: int) -> None:
        image, label = source.item(dataset, index)
        target = folder / names[int(label)] / f"{index:05d}"
        if isinstance(image, Image.Image):
            image.save(target.with_suffix(".png"))
        else:
            shutil.copyfile(image, target.with_suffix(image.suffix.lower()))

    with ThreadPoolExecutor(num_cores()) as pool:
        for _ in track(pool.map(write, range(len(dataset))), title, len(dataset)):
            pass
