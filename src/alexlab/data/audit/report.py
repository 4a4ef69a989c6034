"""Reports of an audit: tables for the terminal, an HTML page with images, a JSON file for scripts."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from alexlab.data.audit.audit import AuditResult
from alexlab.data.decode import decode
from alexlab.data.listing import Finding
from alexlab.errors import ImageError
from alexlab.output.escape import shown
from alexlab.pages.images import thumbnail_url
from alexlab.pages.render import render

MAX_SAMPLES = 480  # thumbnails of readable images on the page, divided among the classes
MAX_LISTED = 200  # findings of one kind on the page; check.json has all of them
MAX_PAIRS = 60
MAX_CLASSES = 50  # rows of the table in the terminal
TITLES = {
    "unreadable": "Unreadable files",
    "duplicate_across_splits": "Identical files in two splits: a leak",
    "near_duplicate_across_splits": "Similar images in two splits: possibly a leak",
    "duplicate_across_classes": "Identical files in two classes",
    "near_duplicate_across_classes": "Similar images in two classes",
    "duplicate": "Identical files",
    "near_duplicate": "Similar images",
    "extension": "Files whose extension does not match their content",
    "unsupported_format": "Images in unsupported formats",
    "outside_classes": "Images outside of the class folders",
    "empty_class": "Classes without images",
    "single_image": "Classes with one image",
    "one_class": "Fewer than two classes",
    "similar_class": "Classes whose names look alike",
    "class_name": "Class names that are not valid UTF-8",
    "extra_class": "Classes that do not occur in train",
    "missing_class": "Classes of train that are missing in another split",
    "unclear_splits": "Ambiguous split folders",
    "no_images": "No images",
    "no_permission": "Folders without read permission",
    "broken_link": "Links that cannot be resolved",
    "loop": "Links back to a folder that contains them",
    "special_file": "Entries that are not regular files",
    "manifest_gone": "Files of the manifest that are missing",
    "manifest_new": "Files that the manifest does not list",
    "manifest_changed": "Files whose content differs from the manifest",
}


class Thumbnail(NamedTuple):
    """An image of the page.

    Args:
        path: path of the file, relative to the dataset's folder.
        url: the thumbnail as a data URL.
    """

    path: str
    url: str


class Section(NamedTuple):
    """Findings of one kind.

    Args:
        title: heading.
        num_findings: number of findings.
        pairs: thumbnails of duplicates; the findings are listed only if there are none.
        findings: the first findings.
    """

    title: str
    num_findings: int
    pairs: Sequence[tuple[Sequence[Thumbnail], str, str]]
    findings: Sequence[Finding]

    @property
    def complete(self) -> bool:
        """True if all findings are on the page."""
        return self.num_findings <= (len(self.pairs) or MAX_LISTED)


def headline(result: AuditResult) -> str:
    """Return the number of findings as text."""
    count = len(result.findings)
    return "no findings" if not count else "1 finding" if count == 1 else f"{count} findings"


def summary_tables(result: AuditResult) -> list[Table]:
    """Return tables for the terminal: images by class and split, and findings by kind."""
    splits = list(result.counts)
    images = Table(title=f"images in {shown(result.root)}")
    images.add_column("class")
    for split in splits:
        images.add_column(split or "images", justify="right")
    for name in result.classes[:MAX_CLASSES]:
        images.add_row(shown(name), *(str(result.counts[split].get(name, 0)) for split in splits))
    if len(result.classes) > MAX_CLASSES:
        images.add_row(f"... {len(result.classes) - MAX_CLASSES} more", *("" for _ in splits))
    images.add_section()
    images.add_row("all", *(f"{sum(result.counts[split].values()):,}" for split in splits))
    findings = Table(title=headline(result))
    for column in ("finding", "count", "example"):
        findings.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
    for code, count in Counter(finding.code for finding in result.findings).items():
        example = next(finding for finding in result.findings if finding.code == code)
        findings.add_row(code, str(count), f"{shown(example.path)} {example.text}")
    return [images, findings] if result.findings else [images]


def write_json(result: AuditResult, path: Path) -> None:
    """Write everything but the manifest rows and the pairs."""
    content = {
        "root": shown(os.path.abspath(result.root)),
        "classes": result.classes,
        "counts": result.counts,
        "findings": [{**asdict(finding), "path": shown(finding.path)} for finding in result.findings],
        "notes": result.notes,
        "sizes": dict(result.sizes.most_common()),
        "modes": dict(result.modes.most_common()),
        "mean": result.mean,
        "std": result.std,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_page(result: AuditResult, path: Path) -> None:
    """Write a self-contained page: findings with their images, counts and statistics, samples of each class."""
    page = render(
        "check.html",
        title=f"Check of {result.root}",
        kind="Dataset check",
        num_findings=f"{len(result.findings):,}",
        verdict=_verdict(result),
        facts={
            "Folder": os.path.abspath(result.root),
            "Images": len(result.rows),
            "Classes": len(result.classes),
            "Splits": ", ".join(filter(None, result.counts)) or "none",
        },
        sections=_sections(result),
        count_columns=["class", *(split or "images" for split in result.counts)],
        count_rows=_count_rows(result),
        statistics=[*zip(("red", "green", "blue"), result.mean, result.std, strict=False)],
        distributions=[
            (title, unit, counter.most_common(8), max(0, len(counter) - 8))
            for title, unit, counter in (("Sizes", "size", result.sizes), ("Modes", "mode", result.modes))
        ],
        notes=result.notes,
        samples=_samples(result),
    )
    path.write_text(page, encoding="utf-8")


def _verdict(result: AuditResult) -> str:
    num_unreadable = len(result.unreadable)
    if not num_unreadable:
        return "All files can be read."
    return f"{num_unreadable:,} {'file' if num_unreadable == 1 else 'files'} cannot be read."


def _count_rows(result: AuditResult) -> list[list[Any]]:
    rows = [[name, *(counts.get(name, 0) for counts in result.counts.values())] for name in result.classes]
    return [*rows, ["all", *(sum(counts.values()) for counts in result.counts.values())]]


def _sections(result: AuditResult) -> list[Section]:
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in result.findings:
        by_kind["unreadable" if finding.code.startswith("unreadable_") else finding.code].append(finding)
    order = list(TITLES)
    sections = []
    for kind in sorted(by_kind, key=order.index):
        pairs = [
            (_thumbnails(result, (pair.first, pair.second)), pair.first, pair.second)
            for pair in [pair for pair in result.pairs if pair.code == kind][:MAX_PAIRS]
        ]
        sections.append(Section(TITLES[kind], len(by_kind[kind]), pairs, by_kind[kind][:MAX_LISTED]))
    return sections


def _samples(result: AuditResult) -> list[tuple[str, int, list[Thumbnail]]]:
    """Return for each class its name, the number of readable images and evenly spaced samples of them."""
    by_class: dict[str, list[str]] = defaultdict(list)
    unreadable = set(result.unreadable)
    for row in result.rows:
        if row.path not in unreadable:
            by_class[row.label].append(row.path)
    per_class = max(2, min(24, MAX_SAMPLES // max(1, len(by_class))))
    samples = []
    for name, paths in sorted(by_class.items())[:MAX_SAMPLES]:
        count = min(per_class, len(paths))
        chosen = [paths[number * len(paths) // count] for number in range(count)]
        samples.append((name, len(paths), _thumbnails(result, chosen)))
    return samples


def _thumbnails(result: AuditResult, paths: Sequence[str]) -> list[Thumbnail]:
    """Return thumbnails of the files that are readable."""
    thumbnails = []
    for path in paths:
        try:
            pixels = decode(os.path.join(result.root, path), result.decoding)
        except ImageError:
            continue
        thumbnails.append(Thumbnail(path, thumbnail_url(pixels)))
    return thumbnails
