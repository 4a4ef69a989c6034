"""One split from one folder of class folders."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from alexlab.data.class_names import check_class_names
from alexlab.data.file_types import HEIF_EXTENSIONS, HEIF_PACKAGE, IMAGE_EXTENSIONS, count_images
from alexlab.data.hidden_names import format_counts
from alexlab.data.listing import Listing, list_images
from alexlab.data.splits import Split, map_labels
from alexlab.errors import DataError
from alexlab.output.escape import shown
from alexlab.output.numbers import counted


def scan_folder(
    root: str,
    folder: str = "",
    classes: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    notes: list[str] | None = None,
    owner: str = "the training split",
) -> Split:
    """Return the images below `root/folder/<class>/` as one split.

    Args:
        root: folder of the dataset, to which paths are relative.
        folder: folder of the split inside the root, or "".
        classes: class names in the order of their labels; by default the sorted names of the class folders.
        cache_dir: as for `list_images`.
        notes: list to which remarks for the user are added.
        owner: owner of `classes`, for messages.

    Raises:
        DataError: if there are no images, a class folder is empty, a class is missing from `classes`, or class names are
            invalid.
    """
    top = os.path.join(root, folder)
    listing = list_images(root, folder, cache_dir=cache_dir)
    if not listing.classes:
        raise DataError(
            f"{top} must contain one folder of images per class; it has {counted(count_images(top), 'image')} and no folder. To "
            "use other splits only, name them: data.splits.train=FOLDER"
        )
    check_class_names(listing.classes, top)
    labels = listing.labels if classes is None else map_labels(top, listing.classes, listing.labels, classes, owner)
    _check_not_empty(top, listing)
    if classes is None and len(listing.classes) < 2:
        raise DataError(f"a classifier needs at least 2 classes; {top} has one, {listing.classes[0]}")
    if notes is not None:
        notes += _skipped_files(top, listing)
    return Split(root, list(classes or listing.classes), listing.paths, labels, listing)


def check_root(root: str, *, missing: str = "no such folder") -> None:
    """Check that `data.root` is a folder.

    Args:
        root: path of the folder.
        missing: reason to report if it does not exist.

    Raises:
        DataError: if it does not exist or is a file; with the absolute path if `root` is relative.
    """
    if os.path.isdir(root):
        return
    reason = "it is a file" if os.path.exists(root) else missing
    absolute = "" if os.path.isabs(root) else f" (looked for {shown(os.path.abspath(root))})"
    raise DataError(
        f"data.root must be a folder of images, one folder per class; got {shown(root)!r}: {reason}{absolute}"
    )


def _check_not_empty(top: str, listing: Listing) -> None:
    if not len(listing.paths):
        more = ", ..." if len(listing.classes) > 5 else ""
        raise DataError(
            f"{top} contains no images: looked for {', '.join(IMAGE_EXTENSIONS)} in {len(listing.classes)} class folders "
            f"({', '.join(listing.classes[:5])}{more}){_skipped(listing)}"
        )
    counts = np.bincount(listing.labels, minlength=len(listing.classes))
    empty = [os.path.join(top, name) for name, count in zip(listing.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"every class folder must contain an image; {', '.join(map(shown, empty))} has none (fill or remove it)"
            f"{_skipped(listing)}"
        )


def _skipped(listing: Listing) -> str:
    """Return the counts of files that are not images, as the end of a message; nothing if there are none."""
    if not listing.ignored:
        return ""
    counts = {kind or "without extension": count for kind, count in listing.ignored.items()}
    hint = f"; reading HEIC needs {HEIF_PACKAGE}" if counts.keys() & set(HEIF_EXTENSIONS) else ""
    return f"; skipped files that are not images: {format_counts(counts)}{hint}"


def _skipped_files(top: str, listing: Listing) -> Iterator[str]:
    """Yield a note for each kind of file that the listing skips."""
    if listing.ignored:
        yield f"{top}: {_skipped(listing).removeprefix('; ')}"
    if listing.hidden:
        yield f"{top}: skipped hidden files and folders: {format_counts(listing.hidden)}"
    if listing.special_files:
        names = ", ".join(f"{shown(path)} ({kind})" for path, kind in listing.special_files[:5])
        more = f", ... ({len(listing.special_files)})" if len(listing.special_files) > 5 else ""
        yield f"{top}: skipped entries that are not regular files: {names}{more}"
    num_images = count_images(top)
    if num_images:
        yield f"{top}: skipped {counted(num_images, 'image')} outside the class folders"
