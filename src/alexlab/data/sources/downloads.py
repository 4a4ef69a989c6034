"""Data sets by name: downloaded and verified by torchvision, written as a tree of image files."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

from PIL import Image
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from alexlab import compat
from alexlab.distributed.hardware import num_cores
from alexlab.errors import ConfigError, DataError
from alexlab.output.progress import track
from alexlab.runs.atomic import atomic_dir
from alexlab.runs.disk_errors import disk_errors


@dataclass(frozen=True)
class File:
    """A file to download.

    Args:
        url: where it is.
        md5: of its content.
        path: where torchvision looks for it, below the folder of the downloads.
    """

    url: str
    md5: str
    path: str


@dataclass(frozen=True)
class DataSet:
    """A data set that torchvision knows.

    Args:
        open: folder of the downloads, split and whether to download, to torchvision's data set.
        files: what it downloads.
        counts: images of each split.
        source: the name that torchvision has for each of our splits.
        names: torchvision's data set to the names of its classes.
        image: an item of it to the path of its image file, or to the picture where there is no such file.
    """

    open: Callable[[str, str, bool], Any]
    files: Callable[[], Sequence[File]]
    counts: Mapping[str, int]
    source: Mapping[str, Any]
    names: Callable[[Any], Sequence[str]] = lambda opened: opened.classes
    image: Callable[[Any, int], Path | Image.Image] = lambda opened, index: opened[index][0]


def _mnist(kind: Any, names: Callable[[Any], Sequence[str]]) -> DataSet:
    return DataSet(
        open=lambda root, split, download: kind(root, train=split == "train", download=download),
        files=lambda: [
            File(f"{kind.mirrors[0]}{name}", md5, f"{kind.__name__}/raw/{name}") for name, md5 in kind.resources
        ],
        counts={"train": 60_000, "test": 10_000},
        source={"train": "train", "test": "test"},
        names=names,
    )


def _imagenette(size: str) -> DataSet:
    def files() -> Sequence[File]:
        return [File(url, md5, _name(url)) for url, md5 in compat.download_files(datasets.Imagenette, size)]

    return DataSet(
        # The archive is the only thing that is checked, so a folder that was half unpacked is told by its counts.
        open=lambda root, split, download: datasets.Imagenette(
            root, split, size, download=download and not Path(root, Path(files()[0].path).stem).exists(), loader=Path
        ),
        files=files,
        counts={"train": 9469, "val": 3925},
        source={"train": "train", "val": "val"},
        names=lambda opened: [names[0] for names in opened.classes],
    )


def _flower_files() -> Sequence[File]:
    return [File(url, md5, f"flowers-102/{_name(url)}") for url, md5 in compat.download_files(datasets.Flowers102)]


def _pet_files() -> Sequence[File]:
    found = compat.download_files(datasets.OxfordIIITPet)
    return [File(url, md5, f"oxford-iiit-pet/{_name(url)}") for url, md5 in found]


def _name(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _one_file(kind: Any) -> Sequence[File]:
    return [File(kind.url, kind.tgz_md5, kind.filename)]


CATALOGUE = {
    "mnist": _mnist(datasets.MNIST, lambda opened: [str(digit) for digit in range(10)]),
    "fashion_mnist": _mnist(datasets.FashionMNIST, lambda opened: opened.classes),
    "cifar10": DataSet(
        open=lambda root, split, download: datasets.CIFAR10(root, train=split == "train", download=download),
        files=partial(_one_file, datasets.CIFAR10),
        counts={"train": 50_000, "test": 10_000},
        source={"train": "train", "test": "test"},
    ),
    "stl10": DataSet(
        open=lambda root, split, download: datasets.STL10(root, split, download=download),
        files=partial(_one_file, datasets.STL10),
        counts={"train": 5000, "test": 8000},
        source={"train": "train", "test": "test"},
    ),
    "flowers102": DataSet(
        open=lambda root, split, download: datasets.Flowers102(root, split, download=download, loader=Path),
        files=_flower_files,
        counts={"train": 1020, "val": 1020, "test": 6149},
        source={"train": "train", "val": "val", "test": "test"},
    ),
    "oxford_pets": DataSet(
        open=lambda root, split, download: datasets.OxfordIIITPet(root, split, download=download),
        files=_pet_files,
        counts={"train": 3680, "test": 3669},
        source={"train": "trainval", "test": "test"},
        image=lambda opened, index: compat.pet_item(opened, index)[0],
    ),
    "imagenette": _imagenette("full"),
    "imagenette_320": _imagenette("320px"),
    "imagenette_160": _imagenette("160px"),
}


def download_dataset(name: str, out: Path, downloads: Path) -> dict[str, int]:
    """Downloads a data set, or takes the files that lie there, and writes `out/<split>/<class>/<number>.<png or jpg>`.

    Pictures that come as arrays are written as PNG; files are copied as they are. All or nothing is written.

    Args:
        name: in the catalogue.
        out: a folder that does not exist.
        downloads: where the original files are kept.

    Returns:
        The number of images of each split.

    Raises:
        ConfigError: when there is no such data set, or `out` exists.
        DataError: when it cannot be downloaded, with the files that must be put where, or is not complete.
    """
    if name not in CATALOGUE:
        raise ConfigError(f"dataset must be one of {', '.join(CATALOGUE)}; got {name!r}")
    if out.exists():
        raise ConfigError(f"out must be a new folder; {out} exists")
    dataset = CATALOGUE[name]
    opened = {split: _opened(name, dataset, split, downloads) for split in dataset.counts}
    _check_archives(name, dataset, downloads)
    for split, found in opened.items():
        if len(found) != dataset.counts[split]:
            raise DataError(
                f"{name} must have {dataset.counts[split]} {split} images; {downloads} holds {len(found)}: remove what "
                "was unpacked there and run the command again"
            )
    with disk_errors(out), atomic_dir(out) as folder:
        for split, found in opened.items():
            _write_split(found, dataset, folder / split, f"{name}, {split}")
    return {split: len(found) for split, found in opened.items()}


def _opened(name: str, dataset: DataSet, split: str, downloads: Path) -> Any:
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        return dataset.open(str(downloads), dataset.source[split], True)
    except (URLError, OSError, RuntimeError) as error:
        missing = [file for file in dataset.files() if not check_integrity(str(downloads / file.path), file.md5)]
        if not missing:
            raise DataError(f"{name} cannot be unpacked in {downloads}: {error}") from error
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"{name} cannot be downloaded: {reason}",
            "Get these files on another machine, put them there and run the command again:",
            *(f"  {file.url} (md5 {file.md5}) as {downloads / file.path}" for file in missing),
        ) from error


def _check_archives(name: str, dataset: DataSet, downloads: Path) -> None:
    """Raise DataError if an archive is corrupt: torchvision does not look at it where there are unpacked files already."""
    for file in dataset.files():
        path = downloads / file.path
        if path.is_file() and not check_integrity(str(path), file.md5):
            raise DataError(
                f"{name} cannot be trusted: {path} must have the MD5 {file.md5}; remove it and what was unpacked in "
                f"{path.parent}, and run the command again"
            )


def _write_split(opened: Any, dataset: DataSet, folder: Path, title: str) -> None:
    names = [re.sub(r"[/\\:\0]+", "-", name) for name in dataset.names(opened)]
    for name in names:
        (folder / name).mkdir(parents=True)
    labels = _labels(opened)

    def write(index: int) -> None:
        image = dataset.image(opened, index)
        target = folder / names[labels[index]] / f"{index:05d}"
        if isinstance(image, Image.Image):
            image.save(target.with_suffix(".png"))
        else:
            shutil.copyfile(image, target.with_suffix(image.suffix.lower()))

    with ThreadPoolExecutor(num_cores()) as pool:
        done = pool.map(write, range(len(labels)))
        for _ in track(done, title, len(labels)):
            pass


def _labels(opened: Any) -> list[int]:
    """The labels of a data set of torchvision, under whichever name it keeps them."""
    for name in ("targets", "labels"):
        if hasattr(opened, name):
            return [int(label) for label in getattr(opened, name)]
    if isinstance(opened, datasets.OxfordIIITPet):
        return [compat.pet_item(opened, index)[1] for index in range(len(opened))]
    return [int(opened[index][1]) for index in range(len(opened))]  # opened with loader=Path: no image is decoded
