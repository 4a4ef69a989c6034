"""Splitting of a dataset into train, val and test, written as folders or as a manifest."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from alexlab.data.audit.unsplit import UnsplitDataset
from alexlab.data.hash_split import split_by_hash
from alexlab.data.manifest import ManifestRow, write_manifest
from alexlab.errors import ConfigError, DataError, DiskError
from alexlab.output.escape import shown
from alexlab.output.progress import track
from alexlab.records.atomic import atomic_dir
from alexlab.records.disk_errors import disk_error

LINKS = ("copy", "hardlink", "symlink", "manifest")


def assign_splits(dataset: UnsplitDataset, fractions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Return the indices of the images of each split, as a run would split the same folder.

    Args:
        dataset: labelled images.
        fractions: fraction of each class, 0..1, of the splits other than train.
        seed: seed of the assignment.

    Raises:
        ConfigError: if the fractions leave nothing to train on.
        DataError: if a class has too few images, or there is only one class.
    """
    if not all(0 <= fraction < 1 for fraction in fractions.values()) or not 0 < sum(fractions.values()) < 1:
        raise ConfigError(f"data.val_fraction and data.test_fraction must leave something to train on; got {fractions}")
    classes = sorted(set(dataset.classes))
    if len(classes) < 2:
        raise DataError(f"a classifier needs at least 2 classes; {dataset.root} has {', '.join(classes)}")
    index_of = {name: index for index, name in enumerate(classes)}
    labels = np.array([index_of[name] for name in dataset.classes], np.int64)
    nonzero = {name: fraction for name, fraction in fractions.items() if fraction}
    return split_by_hash(dataset.paths, labels, classes, nonzero, seed, dataset.groups)


def write_split(dataset: UnsplitDataset, splits: Mapping[str, np.ndarray], out: Path, link: str) -> None:
    """Write `out/<split>/<class>/<file>` and `out/split.csv`, or only the latter, all or nothing.

    Args:
        dataset: labelled images.
        splits: indices of the images of each split.
        out: a new or empty folder.
        link: `copy`, `hardlink` or `symlink` the files, or only list them in `split.csv`: `manifest`.

    Raises:
        ConfigError: if `link` is invalid, or the folder is not empty.
        DataError: if a file cannot be read or linked, or two files would have the same name.
        DiskError: if the folder cannot be written.
    """
    if link not in LINKS:
        raise ConfigError(f"link must be one of {', '.join(LINKS)}; got {link!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out must be a new or empty folder; {out} is not")
    try:
        if out.is_dir():
            out.rmdir()
        with atomic_dir(out) as folder:
            rows = [(split, int(index)) for split, indices in splits.items() for index in indices]
            if link != "manifest":
                for split, index in track(rows, "writing files"):
                    _write_file(dataset, index, folder / split, link)
            _write_manifest(dataset, rows, folder / "split.csv", out, link)
    except OSError as error:
        raise DiskError(f"out must be a writable folder; got {shown(out)}: {error.strerror}") from error


def _write_manifest(dataset: UnsplitDataset, rows: list[tuple[str, int]], path: Path, out: Path, link: str) -> None:
    base = os.path.relpath(os.path.realpath(dataset.root), os.path.realpath(out))

    def listed(split: str, index: int) -> str:
        if link == "manifest":
            return os.path.join(base, dataset.paths[index])
        return os.path.join(split, _path_in_split(dataset, index))

    write_manifest(
        (ManifestRow(listed(split, index), label=dataset.classes[index], split=split) for split, index in rows), path
    )


def _path_in_split(dataset: UnsplitDataset, index: int) -> str:
    """Return the path of an image in the folder of its split: its class, then its path within the class folder."""
    name = dataset.classes[index]
    return os.path.join(name, dataset.paths[index].removeprefix(f"{name}/"))


def _write_file(dataset: UnsplitDataset, index: int, folder: Path, link: str) -> None:
    original = os.path.abspath(os.path.join(dataset.root, dataset.paths[index]))
    target = folder / _path_in_split(dataset, index)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            name, path = dataset.classes[index], shown(dataset.paths[index])
            raise DataError(f"the files of a class must differ in name; {path} is the second {target.name} of {name}")
        if link != "symlink" and not os.path.isfile(original):  # copying a device might never end
            raise DataError(f"cannot {link} {shown(original)}: it is missing or not a regular file")
        if link == "copy":
            shutil.copyfile(original, target)
        elif link == "hardlink":
            os.link(os.path.realpath(original), target)  # of a link, the file: a relative link leads nowhere in `out`
        else:
            target.symlink_to(original)
    except OSError as error:
        raise disk_error(error, target) or DataError(f"cannot {link} {shown(original)}: {error.strerror}") from error
