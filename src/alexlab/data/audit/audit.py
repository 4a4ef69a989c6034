"""Audit of a dataset before training: every file is decoded once and every irregularity becomes a finding."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from alexlab.data.audit.duplicates import Pair, find_pairs
from alexlab.data.audit.inspection import Inspection, inspect_files
from alexlab.data.class_names import confusable_names
from alexlab.data.file_types import HEIF_EXTENSIONS, HEIF_PACKAGE, IMAGE_EXTENSIONS
from alexlab.data.hidden_names import format_counts, hidden_kind, is_hidden
from alexlab.data.image_file import DEFAULT_DECODING, REASONS, Decoding
from alexlab.data.layout import find_layout
from alexlab.data.listing import Finding, Listing, list_images
from alexlab.data.manifest import ManifestRow, locator, read_manifest
from alexlab.data.scan import check_root
from alexlab.output.escape import writable

# Common image formats that are not supported. Such files are findings; files of other kinds are only counted.
UNSUPPORTED = (
    *(".gif", *HEIF_EXTENSIONS, ".jp2", ".jxl", ".svg"),
    *(".raw", ".cr2", ".nef", ".dng", ".psd", ".eps"),
)


@dataclass
class AuditResult:
    """Findings and statistics of a dataset.

    Args:
        root: folder of the dataset.
        decoding: decoding settings.
        classes: class names of all splits together.
        counts: number of images by split and class; the only split of an undivided folder is called "".
        findings: irregularities, sorted by code and path.
        notes: remarks that are not findings, such as the files that were left out.
        rows: manifest rows of all files.
        sizes: number of images by "width x height".
        modes: number of images by Pillow mode.
        mean, std: per-channel statistics of the readable images in [0, 1], each image weighted equally.
        pairs: exact and near duplicates.
    """

    root: str
    decoding: Decoding = DEFAULT_DECODING
    classes: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[ManifestRow] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)

    @property
    def unreadable(self) -> list[str]:
        """Paths of the unreadable files, without those that only could not be read this time."""
        codes = {f"unreadable_{code}" for code in REASONS if code != "not_read"}
        return [finding.path for finding in self.findings if finding.code in codes]


def audit_dataset(
    root: str,
    manifest: str | None = None,
    *,
    folders: Mapping[str, str | None] | None = None,
    decoding: Decoding = DEFAULT_DECODING,
) -> AuditResult:
    """Inspect every folder and file of a dataset; nothing is changed.

    Args:
        root: folder of the dataset, with or without split folders.
        manifest: CSV file with the expected SHA-256 of each file, to compare with.
        folders: folder of each split, as for `find_splits`.
        decoding: decoding settings.

    Raises:
        DataError: if the folder does not exist or has no class folders.
    """
    check_root(root)
    result = AuditResult(root, replace(decoding, channels=3))
    listings = list(_list_splits(root, folders, result))
    _check_classes(listings, result)
    rows = [
        ManifestRow(path, label=listing.classes[label], split=split)
        for split, listing in listings
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True)
    ]
    if not rows:
        result.findings.append(Finding("no_images", ".", "holds no images"))
    inspections = inspect_files(root, rows, result.decoding)
    result.rows = [inspection.row for inspection in inspections]
    result.findings += [inspection.finding for inspection in inspections if inspection.finding is not None]
    _add_statistics(inspections, result)
    result.pairs = find_pairs(inspections)
    result.findings += [pair.finding() for pair in result.pairs]
    if manifest is not None:
        _compare_with_manifest(manifest, result)
    result.findings.sort(key=lambda finding: (finding.code, finding.path))
    return result


def _add_statistics(inspections: Sequence[Inspection], result: AuditResult) -> None:
    readable = [(inspection.row, inspection.stats) for inspection in inspections if inspection.stats is not None]
    result.sizes = Counter(f"{row.width} x {row.height}" for row, _ in readable)
    result.modes = Counter(row.mode for row, _ in readable)
    num_animated = sum(stats.animated for _, stats in readable)
    if num_animated:
        files = "1 file holds" if num_animated == 1 else f"{num_animated} files hold"
        result.notes.append(f"{files} several images; only the first is used")
    if readable:
        mean = np.mean([stats.mean for _, stats in readable], 0)
        mean_square = np.mean([stats.mean_square for _, stats in readable], 0)
        result.mean, result.std = mean.tolist(), np.sqrt((mean_square - mean**2).clip(0)).tolist()


def _list_splits(
    root: str, folders: Mapping[str, str | None] | None, result: AuditResult
) -> Iterator[tuple[str, Listing]]:
    """Yield the files of each split, or those of the whole folder under the name "" if it has no splits."""
    layout = find_layout(root, folders)
    result.notes += layout.notes
    if layout.ambiguity is not None:
        result.findings.append(Finding("unclear_splits", ".", layout.ambiguity))
    for split, name in [(split, name) for split, names in layout.folders.items() for name in names] or [("", "")]:
        listing = list_images(root, name, findings=result.findings)
        counts = np.bincount(listing.labels, minlength=len(listing.classes)).tolist()
        known = result.counts.setdefault(split, {})  # several folders may be named like the same split
        known |= {label: known.get(label, 0) + count for label, count in zip(listing.classes, counts, strict=True)}
        for label, count in zip(listing.classes, counts, strict=True):
            if not count:
                result.findings.append(Finding("empty_class", os.path.join(name, label), "is a class without images"))
            elif count == 1 and split in ("", "train") and "val" not in layout.folders:
                text = "is a class with one image; at least 2 are needed to split it into train and val"
                result.findings.append(Finding("single_image", os.path.join(name, label), text))
        result.findings += [
            Finding("special_file", path, f"is left out: it is {kind}, and only regular files are read")
            for path, kind in listing.special_files
        ]
        _check_other_files(root, name, result)
        yield split, listing


def _check_other_files(root: str, split_folder: str, result: AuditResult) -> None:
    """Report images that are not used and count files and folders that do not belong to the dataset."""
    top = os.path.join(root, split_folder)
    left_out: Counter[str] = Counter()
    suffixes: Counter[str] = Counter()
    for folder, subfolders, names in os.walk(top):
        relative = os.path.relpath(folder, root)
        for sub in [sub for sub in subfolders if is_hidden(sub)]:
            subfolders.remove(sub)
            left_out[hidden_kind(sub)] += 1
        for file in names:
            suffix = os.path.splitext(file)[1].lower()
            path = os.path.normpath(os.path.join(relative, file))
            if is_hidden(file):
                left_out[hidden_kind(file)] += 1
            elif suffix in UNSUPPORTED and suffix not in IMAGE_EXTENSIONS:
                needed = f" without {HEIF_PACKAGE}" if suffix in HEIF_EXTENSIONS else ""
                text = f"is left out: {suffix} files are not supported{needed}"
                result.findings.append(Finding("unsupported_format", path, text))
            elif suffix not in IMAGE_EXTENSIONS:
                suffixes[suffix or "extensionless"] += 1
            elif folder == top:
                text = "is left out: it is next to the class folders, not in one of them"
                result.findings.append(Finding("outside_classes", path, text))
    left_out.update({f"{name} {'file' if count == 1 else 'files'}": count for name, count in suffixes.items()})
    if left_out:
        where = f" in {split_folder}" if split_folder else ""
        result.notes.append(f"left out{where}: {format_counts(left_out)}")


def _check_classes(listings: Sequence[tuple[str, Listing]], result: AuditResult) -> None:
    """Compare the class names within each split and between splits."""
    result.classes = sorted({name for _, listing in listings for name in listing.classes})
    for _, listing in listings:
        for name in listing.classes:
            if writable(name) != name:
                path = os.path.join(listing.folder, name)
                result.findings.append(Finding("class_name", path, "is a class whose name is not valid UTF-8"))
        for first, second in confusable_names(listing.classes):
            text = f"is a class whose name differs from {first!a} only in case or Unicode form"
            result.findings.append(Finding("similar_class", os.path.join(listing.folder, second), text))
    by_split = {split: {unicodedata.normalize("NFC", name) for name in listing.classes} for split, listing in listings}
    for split, listing in listings:
        if split in ("", "train") or "train" not in by_split:
            continue
        for name in sorted(by_split[split] - by_split["train"]):
            path = os.path.join(listing.folder, name)
            result.findings.append(Finding("extra_class", path, "is a class that does not occur in train"))
        for name in sorted(by_split["train"] - by_split[split]):
            path = os.path.join(listing.folder, name)
            result.findings.append(Finding("missing_class", path, "is missing, although train has this class"))
    if listings and len(result.classes) < 2:
        result.findings.append(Finding("one_class", ".", "has fewer than two classes"))


def _compare_with_manifest(manifest: str, result: AuditResult) -> None:
    """Report files that differ from an earlier manifest."""
    before, located = read_manifest(manifest, result.root), locator(result.root)
    now = {located(row.path): row for row in result.rows}
    for location in before.keys() | now.keys():
        if location not in now:
            text = "is listed in the manifest but missing"
            result.findings.append(Finding("manifest_gone", before[location].path, text))
        elif location not in before:
            result.findings.append(Finding("manifest_new", now[location].path, "is not listed in the manifest"))
        elif before[location].sha256 and before[location].sha256 != now[location].sha256:
            text = "has another SHA-256 than in the manifest"
            result.findings.append(Finding("manifest_changed", now[location].path, text))
