"""Looks at a data set before anything is trained: every file is decoded once, and every problem is told. Imports no torch."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from alexlab.data.audit.duplicates import Pair, find_pairs
from alexlab.data.audit.inspection import look_at
from alexlab.data.hidden_names import format_counts, hidden_kind, is_hidden
from alexlab.data.image_file import DEFAULT, Decoding
from alexlab.data.layout import find_layout
from alexlab.data.listing import (
    HEIF_EXTENSIONS,
    HEIF_PACKAGE,
    IMAGE_EXTENSIONS,
    Listing,
    Problem,
    confusable_names,
    list_images,
)
from alexlab.data.manifest import ManifestRow, locator, read_manifest
from alexlab.data.splits import check_root
from alexlab.output.escape import writable

# Pictures that people have and that are not read: they are findings, other files are only counted.
UNSUPPORTED = (
    *(".gif", *HEIF_EXTENSIONS, ".jp2", ".jxl", ".svg"),
    *(".raw", ".cr2", ".nef", ".dng", ".psd", ".eps"),
)


@dataclass
class Findings:
    """What is known of a data set after the check.

    Args:
        root: its folder.
        decoding: the settings by which files become pixels.
        classes: of all splits together.
        counts: images by split and class; the split of an undivided folder has the name "".
        problems: all that should be looked into, by path.
        notes: what was left out, and is no problem.
        rows: the manifest.
        sizes, modes: how many images have which width x height and which mode.
        mean, std: of the readable images' values in [0, 1], each image counting as much as any other.
        pairs: exact and near duplicates.
    """

    root: str
    decoding: Decoding = DEFAULT
    classes: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[ManifestRow] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)

    @property
    def unreadable(self) -> list[str]:
        """Paths of the files that cannot be read."""
        return [problem.path for problem in self.problems if problem.code.startswith("unreadable_")]


def check(
    root: str,
    manifest: str | None = None,
    *,
    folders: Mapping[str, str | None] | None = None,
    decoding: Decoding = DEFAULT,
) -> Findings:
    """Looks at every folder and every file of a data set and tells all that is wrong; nothing is changed.

    Args:
        root: the data set's folder, with or without split folders.
        manifest: a list with the SHA-256 of each file, to compare with.
        folders: as for `find_splits`.
        decoding: the settings by which files become pixels.

    Raises:
        DataError: when there is no such folder, or it holds no class folder.
    """
    check_root(root)
    findings = Findings(root, replace(decoding, channels=3))
    listings = list(_listings(root, folders, findings))
    _names(listings, findings)
    rows = [
        ManifestRow(path, label=listing.classes[label], split=split)
        for split, listing in listings
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True)
    ]
    if not rows:
        findings.problems.append(Problem("no_images", ".", "holds no images"))
    seen = look_at(root, rows, findings.decoding)
    findings.rows = [one.row for one in seen]
    findings.problems += [one.problem for one in seen if one.problem is not None]
    pictures = [one.picture for one in seen if one.picture is not None]
    findings.sizes = Counter(f"{one.row.width} x {one.row.height}" for one in seen if one.picture)
    findings.modes = Counter(one.row.mode for one in seen if one.picture)
    animated = sum(picture.animated for picture in pictures)
    if animated:
        findings.notes.append(f"{animated} animated files: their first picture is taken")
    if pictures:
        mean = np.mean([picture.mean for picture in pictures], 0)
        square = np.mean([picture.square for picture in pictures], 0)
        findings.mean, findings.std = mean.tolist(), np.sqrt((square - mean**2).clip(0)).tolist()
    findings.pairs = find_pairs(seen)
    findings.problems += [pair.problem() for pair in findings.pairs]
    if manifest is not None:
        _compared(findings, manifest)
    findings.problems.sort(key=lambda problem: (problem.code, problem.path))
    return findings


def _listings(root: str, folders: Mapping[str, str | None] | None, findings: Findings) -> Iterator[tuple[str, Listing]]:
    """The files of each split, or of the whole folder where there are no splits."""
    layout = find_layout(root, folders)
    findings.notes += layout.notes
    if layout.ambiguity is not None:
        findings.problems.append(Problem("unclear_splits", ".", layout.ambiguity))
    for split, name in [(split, name) for split, names in layout.folders.items() for name in names] or [("", "")]:
        listing = list_images(root, name, problems=findings.problems)
        top = os.path.join(root, name)
        counts = np.bincount(listing.labels, minlength=len(listing.classes)).tolist()
        findings.counts[split] = dict(zip(listing.classes, counts, strict=True))
        for label, count in zip(listing.classes, counts, strict=True):
            if not count:
                findings.problems.append(Problem("empty_class", os.path.join(name, label), "is a class without images"))
        findings.problems += [
            Problem("special_file", path, f"is left out: it is {kind}, and only regular files are read")
            for path, kind in listing.special_files
        ]
        _others(root, name, top, findings)
        yield split, listing


def _others(root: str, name: str, top: str, findings: Findings) -> None:
    """Files and folders that are no part of the data."""
    left_out: Counter[str] = Counter()
    for folder, subfolders, names in os.walk(top):
        relative = os.path.relpath(folder, root)
        for sub in [sub for sub in subfolders if is_hidden(sub)]:
            subfolders.remove(sub)
            left_out[hidden_kind(sub)] += 1
        for file in names:
            suffix = os.path.splitext(file)[1].lower()
            if is_hidden(file):
                left_out[hidden_kind(file)] += 1
            elif suffix in UNSUPPORTED and suffix not in IMAGE_EXTENSIONS:
                path = os.path.normpath(os.path.join(relative, file))
                needed = f" without {HEIF_PACKAGE}" if suffix in HEIF_EXTENSIONS else ""
                findings.problems.append(
                    Problem("unsupported_format", path, f"is left out: {suffix} files are not read{needed}")
                )
            elif suffix not in IMAGE_EXTENSIONS:
                left_out[f"{suffix or 'extensionless'} files"] += 1
            elif folder == top:
                path = os.path.normpath(os.path.join(relative, file))
                findings.problems.append(
                    Problem("outside_classes", path, "lies beside the class folders and is left out")
                )
    if left_out:
        findings.notes.append(f"left out in {name or '.'}: {format_counts(left_out)}")


def _names(listings: Sequence[tuple[str, Listing]], findings: Findings) -> None:
    """Compares the names of the classes, within a split and between splits."""
    findings.classes = sorted({name for _, listing in listings for name in listing.classes})
    for _, listing in listings:
        for name in listing.classes:
            if writable(name) != name:
                place = os.path.join(listing.folder, name)
                findings.problems.append(Problem("class_name", place, "is a class whose name is no UTF-8"))
        for first, second in confusable_names(listing.classes):
            text = f"is a class whose name is that of {first!a} but for case or Unicode form"
            findings.problems.append(Problem("similar_class", os.path.join(listing.folder, second), text))
    by_split = {split: {unicodedata.normalize("NFC", name) for name in listing.classes} for split, listing in listings}
    for split, listing in listings:
        if split in ("", "train") or "train" not in by_split:
            continue
        for name in sorted(by_split[split] - by_split["train"]):
            place = os.path.join(listing.folder, name)
            findings.problems.append(Problem("extra_class", place, "is a class that train has not"))
        for name in sorted(by_split["train"] - by_split[split]):
            place = os.path.join(listing.folder, name)
            findings.problems.append(Problem("missing_class", place, "is a class of train that is missing here"))
    if listings and len(findings.classes) < 2:
        findings.problems.append(Problem("one_class", ".", "has fewer than two classes"))


def _compared(findings: Findings, manifest: str) -> None:
    """Compares the files with an earlier manifest."""
    before, located = read_manifest(manifest, findings.root), locator(findings.root)
    now = {located(row.path): row for row in findings.rows}
    for location in before.keys() | now.keys():
        if location not in now:
            text = "is in the manifest and no longer here"
            findings.problems.append(Problem("manifest_gone", before[location].path, text))
        elif location not in before:
            findings.problems.append(Problem("manifest_new", now[location].path, "is not in the manifest"))
        elif before[location].sha256 and before[location].sha256 != now[location].sha256:
            text = "is not the file that the manifest lists"
            findings.problems.append(Problem("manifest_changed", now[location].path, text))
