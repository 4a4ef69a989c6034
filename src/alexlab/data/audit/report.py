"""The findings of a check for people: a table in the terminal, a page with pictures, a file for scripts."""

import json
import os
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from alexlab.data.audit.audit import AuditResult
from alexlab.data.decode import decode
from alexlab.errors import ImageError
from alexlab.output.escape import shown
from alexlab.pages import html

MAX_SAMPLES = 480  # pictures of the sheet, shared by the classes
MAX_LISTED = 200  # findings of one kind on the page; the others are in check.json
MAX_PAIRS = 60
TITLES = {
    "unreadable": "Files that cannot be read",
    "duplicate_across_splits": "Equal files in two splits: a leak",
    "near_duplicate_across_splits": "Pictures that look alike in two splits: a leak, perhaps",
    "duplicate_across_classes": "Equal files in two classes",
    "near_duplicate_across_classes": "Pictures that look alike in two classes",
    "duplicate": "Equal files",
    "near_duplicate": "Pictures that look alike",
    "extension": "Files that are not what their name says",
    "unsupported_format": "Pictures in formats that are not read",
    "outside_classes": "Pictures outside of the class folders",
}


def kind(code: str) -> str:
    """The heading that a code stands under."""
    return "unreadable" if code.startswith("unreadable_") else code


def counted(result: AuditResult) -> str:
    """How many findings there are, in words."""
    number = len(result.findings)
    return "nothing was found" if not number else "1 finding" if number == 1 else f"{number} findings"


def summary(result: AuditResult) -> list[Table]:
    """Tables for the terminal: images by class and split, and findings by kind."""
    splits = list(result.counts)
    counts = Table(title=f"images of {shown(result.root)}")
    counts.add_column("class")
    for split in splits:
        counts.add_column(split or "images", justify="right")
    for name in result.classes[:50]:
        counts.add_row(shown(name), *(str(result.counts[split].get(name, 0)) for split in splits))
    if len(result.classes) > 50:
        counts.add_row(f"... {len(result.classes) - 50} more", *("" for _ in splits))
    counts.add_section()
    counts.add_row("all", *(f"{sum(result.counts[split].values()):,}" for split in splits))
    findings = Table(title=counted(result))
    for column in ("finding", "count", "such as"):
        findings.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
    numbers = Counter(finding.code for finding in result.findings)
    for code, number in numbers.items():
        first = next(finding for finding in result.findings if finding.code == code)
        findings.add_row(code, str(number), f"{shown(first.path)} {first.text}")
    return [counts, findings] if result.findings else [counts]


def write_json(result: AuditResult, path: Path) -> None:
    """Everything but the manifest, which is a file of its own."""
    about = {
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
    path.write_text(json.dumps(about, indent=2) + "\n")


def write_page(result: AuditResult, path: Path) -> None:
    """One file that needs no network: numbers, findings with their pictures, a sheet of samples for each class."""
    parts = [
        f"<p class={'bad' if result.findings else 'good'}>{counted(result)}</p>",
        *_problems(result),
        *_numbers(result),
        *_samples(result),
    ]
    html.write_page(path, result.root, parts)


def _numbers(result: AuditResult) -> list[str]:
    splits = list(result.counts)
    rows: list[list[Any]] = [["class", *(split or "images" for split in splits)]]
    rows += [[name, *(result.counts[split].get(name, 0) for split in splits)] for name in result.classes]
    rows.append(["all", *(sum(result.counts[split].values()) for split in splits)])
    parts = ["<h2>Images</h2>", _table(rows)]
    if result.mean:
        values = [
            [name, *(f"{value:.4f}" for value in numbers)]
            for name, numbers in (("mean", result.mean), ("standard deviation", result.std))
        ]
        parts.append(_table([["of values in 0..1", "red", "green", "blue"], *values]))
    for title, counter in (("Sizes", result.sizes), ("Modes", result.modes)):
        common = [[name, f"{count:,}"] for name, count in counter.most_common(8)]
        rest = len(counter) - len(common)
        parts += [f"<h3>{title}</h3>", _table([[title.lower()[:-1], "images"], *common])]
        parts += [f"<p>and {rest} others</p>"] if rest > 0 else []
    parts += [f"<p>{html.text(note)}</p>" for note in result.notes]
    return parts


def _problems(result: AuditResult) -> list[str]:
    groups = defaultdict(list)
    for finding in result.findings:
        groups[kind(finding.code)].append(finding)
    parts = ["<h2>Findings</h2>"] if groups else []
    for name in sorted(groups, key=lambda name: list(TITLES).index(name) if name in TITLES else len(TITLES)):
        found = groups[name]
        parts.append(f"<h3>{html.text(TITLES.get(name, name.replace('_', ' ')))} ({len(found)})</h3>")
        pairs = [pair for pair in result.pairs if pair.code == name][:MAX_PAIRS]
        for pair in pairs:
            pictures = "".join(_picture(result, path) for path in (pair.first, pair.second))
            parts.append(
                f"<figure>{pictures}<figcaption>{html.text(pair.first)}<br>{html.text(pair.second)}</figcaption></figure>"
            )
        if not pairs:
            rows = [
                f"<li><code>{html.text(finding.path)}</code> {html.text(finding.text)}"
                for finding in found[:MAX_LISTED]
            ]
            parts.append(f"<ul>{''.join(rows)}</ul>")
        if len(found) > max(len(pairs), MAX_LISTED if not pairs else 0):
            parts.append("<p>The others are in check.json.</p>")
    return parts


def _samples(result: AuditResult) -> list[str]:
    readable: dict[str, list[str]] = defaultdict(list)
    bad = set(result.unreadable)
    for row in result.rows:
        if row.path not in bad:
            readable[row.label].append(row.path)
    share = max(2, min(24, MAX_SAMPLES // max(1, len(readable))))
    parts = ["<h2>Samples</h2>"]
    for name, paths in sorted(readable.items())[:MAX_SAMPLES]:
        chosen = [paths[number * len(paths) // min(share, len(paths))] for number in range(min(share, len(paths)))]
        pictures = "".join(_picture(result, path) for path in chosen)
        parts.append(f"<h3>{html.text(name)} ({len(paths):,})</h3><div class=row>{pictures}</div>")
    return parts


def _picture(result: AuditResult, path: str) -> str:
    try:
        return html.picture(decode(os.path.join(result.root, path), result.decoding), path)
    except ImageError:
        return ""


def _table(rows: list[list[Any]]) -> str:
    return html.table(rows[0], rows[1:])
