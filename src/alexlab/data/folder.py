"""A folder of images on disk: which files it holds, of which classes, in which splits. Imports no torch.

Three layouts are understood:
    (a) root/{train,val[,test]}/<class>/...    the splits as they stand (`valid` and `validation` are `val` too)
    (b) root/<class>/...                       split here, by a hash of each file's path
    (c) root/train/<class>/... [root/test/...] without val: a part of train becomes val
"""

import csv
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alexlab.errors import DataError

# Those of torchvision.datasets.folder.IMG_EXTENSIONS, so that a clean folder gives the same list of files.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")
MANIFEST_COLUMNS = ("path", "size", "sha256", "class", "split", "width", "height", "mode")


@dataclass(frozen=True)
class Split:
    """The images of one split, in the order of torchvision's ImageFolder.

    Args:
        root: the folder that `paths` are relative to.
        classes: the names of all classes; the index of a name is its label.
        paths: relative paths of the files.
        labels: one label for each path.
    """

    root: str
    classes: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> list[int]:
        """Number of images of each class, in the order of `classes`."""
        found = Counter(self.labels)
        return [found[label] for label in range(len(self.classes))]


@dataclass(frozen=True)
class Splits:
    """The splits of one data set over one vocabulary of classes, that of the training split.

    Args:
        train, val, test: the splits; there may be no test split.
        made_here: true where alexlab has divided the files itself.
        notes: what a person should know about how they came about.
    """

    train: Split
    val: Split
    test: Split | None = None
    made_here: bool = False
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def classes(self) -> Sequence[str]:
        return self.train.classes

    def named(self) -> Iterator[tuple[str, Split]]:
        """The splits that there are, by name."""
        yield "train", self.train
        yield "val", self.val
        if self.test is not None:
            yield "test", self.test

    def write_manifest(self, path: Path) -> None:
        """Writes one row for each image; columns that nobody has looked up stay empty."""
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, MANIFEST_COLUMNS, restval="")
            writer.writeheader()
            for name, split in self.named():
                for relative, label in zip(split.paths, split.labels, strict=True):
                    writer.writerow({"path": relative, "class": split.classes[label], "split": name})


def find_splits(
    root: str, *, val_fraction: float, test_fraction: float, val_split: str = "val", split_seed: int = 0
) -> Splits:
    """The splits of the data set at `root`, in whichever of the three layouts it is.

    Args:
        root: the data set's folder.
        val_fraction, test_fraction: the parts of each class, 0..1, that become val and test where they are made here.
        val_split: `val`, or `test` to validate on the test split.
        split_seed: another number gives another division of the files.

    Raises:
        DataError: when the folder is missing, empty, or its splits do not fit together.
    """
    if not os.path.isdir(root):
        what = "it is a file" if os.path.exists(root) else "there is no such folder"
        raise DataError(f"data.root must be a folder of images, one folder per class; got {root!r}: {what}")
    if val_split not in ("val", "test"):
        raise DataError(f"data.val_split must be val or test; got {val_split!r}")
    if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise DataError(
            "data.val_fraction must lie between 0 and 1, and leave something to train on beside data.test_fraction; "
            f"got {val_fraction} and {test_fraction}"
        )
    folders = {name: _split_folder(root, names) for name, names in SPLIT_FOLDERS.items()}
    if folders["train"] is None or not _class_folders(os.path.join(root, folders["train"])):
        return _divided_folder(root, val_fraction, test_fraction, val_split, split_seed)

    train = scan(root, folders["train"])
    test = scan(root, folders["test"], train.classes) if folders["test"] else None
    if val_split == "test":
        if test is None:
            raise DataError(f"data.val_split=test needs the folder {os.path.join(root, 'test')}, which is not there")
        note = "validating on the test split (data.val_split=test): its scores are no estimate for unseen images"
        return Splits(train, test, None, notes=(note, *_absent("test", test)))
    if folders["val"] is not None:
        val = scan(root, folders["val"], train.classes)
        absent = (*_absent("val", val), *(_absent("test", test) if test else ()))
        return Splits(train, val, test, notes=absent)
    parts = _divide(train, {"val": val_fraction}, split_seed)
    note = f"there is no val folder: {len(parts['val'])} of {len(train)} training images became the validation split"
    return Splits(parts["train"], parts["val"], test, made_here=True, notes=(note,))


def scan(root: str, folder: str = "", classes: Sequence[str] | None = None) -> Split:
    """Lists the images below `root/folder/<class>/`, recursively, as torchvision's ImageFolder does, less the litter.

    Args:
        root: the data set's folder; paths are relative to it.
        folder: the split's folder inside root, or nothing.
        classes: the vocabulary; by default the names of the class folders, sorted.

    Raises:
        DataError: when there is no image, a class folder is empty, or a class is not in the vocabulary.
    """
    top = os.path.join(root, folder)
    found = _class_folders(top)
    if not found:
        raise DataError(
            f"{top} must hold one folder of images per class; found no folder in it, and {_count_images(top)} images"
        )
    vocabulary = list(classes if classes is not None else found)
    unknown = [name for name in found if name not in vocabulary]
    if unknown:
        raise DataError(
            f"every class must be in the training split; {top} has {', '.join(unknown)}, train has "
            f"{', '.join(vocabulary)}"
        )
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    prefix = len(os.path.join(root, ""))
    for name in found:
        files = list(_images(os.path.join(top, name)))
        if not files:
            empty.append(name)
        paths.extend(file[prefix:] for file in files)
        labels.extend([vocabulary.index(name)] * len(files))
    if not paths:
        raise DataError(
            f"{top} holds no images: looked for {', '.join(IMAGE_EXTENSIONS)} in {len(found)} class folders "
            f"({', '.join(found[:5])}{', ...' if len(found) > 5 else ''})"
        )
    if empty:
        raise DataError(
            f"every class folder must hold an image; empty: {', '.join(os.path.join(top, name) for name in empty)} "
            "(fill it or remove it)"
        )
    if classes is None and len(found) < 2:
        raise DataError(f"a classifier needs at least 2 classes; {top} has one, {found[0]}")
    return Split(root, vocabulary, paths, labels)


def hidden(name: str) -> bool:
    """Whether a file or folder is no part of the data: dot files, AppleDouble files, what file managers leave behind."""
    return name.startswith(".") or name in LITTER


def _split_folder(root: str, names: Sequence[str]) -> str | None:
    found = [name for name in names if os.path.isdir(os.path.join(root, name))]
    if len(found) > 1:
        raise DataError(f"{root} must have one validation folder; got {' and '.join(found)}")
    return found[0] if found else None


def _class_folders(top: str) -> list[str]:
    with os.scandir(top) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not hidden(entry.name))


def _count_images(top: str) -> int:
    return sum(name.lower().endswith(IMAGE_EXTENSIONS) for name in os.listdir(top))


def _images(top: str) -> Iterator[str]:
    """Image files below a class folder: folders in the order of their whole paths, files by name."""
    visited: set[tuple[int, int]] = set()
    listing: list[tuple[str, list[str]]] = []
    for folder, subfolders, names in os.walk(top, followlinks=True):
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in visited:
            raise DataError(f"{folder} is a link back to a folder that was already read; remove the loop")
        visited.add(identity)
        subfolders[:] = [name for name in subfolders if not hidden(name)]
        listing.append((folder, [n for n in names if n.lower().endswith(IMAGE_EXTENSIONS) and not hidden(n)]))
    for folder, names in sorted(listing):
        for name in sorted(names):
            yield os.path.join(folder, name)


def _divided_folder(root: str, val_fraction: float, test_fraction: float, val_split: str, seed: int) -> Splits:
    whole = scan(root)
    fractions = {"val": val_fraction} | ({"test": test_fraction} if test_fraction else {})
    if val_split == "test":
        raise DataError(f"data.val_split=test needs the folder {os.path.join(root, 'test')}, which is not there")
    parts = _divide(whole, fractions, seed)
    sizes = ", ".join(f"{name} {len(split)}" for name, split in parts.items())
    note = f"{len(whole)} images divided by a hash of their paths: {sizes}"
    return Splits(parts["train"], parts["val"], parts.get("test"), made_here=True, notes=(note,))


def _divide(whole: Split, fractions: dict[str, float], seed: int) -> dict[str, Split]:
    """Divides each class by a hash of the relative path: the same on every machine, whatever the order of the files."""
    members: dict[str, list[int]] = {name: [] for name in ("train", *fractions)}
    by_label: list[list[int]] = [[] for _ in whole.classes]
    for index, label in enumerate(whole.labels):
        by_label[label].append(index)
    for label, indices in enumerate(by_label):
        needed = 1 + len(fractions)
        if len(indices) < needed:
            raise DataError(
                f"class {whole.classes[label]} needs at least {needed} images to be divided into "
                f"{' and '.join(members)}; it has {len(indices)}"
            )
        indices.sort(key=lambda index: _path_hash(whole.paths[index], seed))
        for name, fraction in fractions.items():
            count = min(max(1, round(fraction * len(by_label[label]))), len(indices) - 1)
            members[name].extend(indices[:count])
            indices = indices[count:]
        members["train"].extend(indices)
    return {
        name: Split(
            whole.root,
            whole.classes,
            [whole.paths[index] for index in sorted(chosen)],
            [whole.labels[index] for index in sorted(chosen)],
        )
        for name, chosen in members.items()
    }


def _path_hash(path: str, seed: int) -> bytes:
    portable = unicodedata.normalize("NFC", path.replace(os.sep, "/"))
    return hashlib.blake2b(f"{seed}:{portable}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _absent(name: str, split: Split) -> tuple[str, ...]:
    missing = [split.classes[label] for label, count in enumerate(split.counts()) if not count]
    return (f"the {name} split has no image of {', '.join(missing)}",) if missing else ()
