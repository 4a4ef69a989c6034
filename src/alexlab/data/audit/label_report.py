"""Results of a search for label errors: tables for the terminal, labels.csv, and a page on which each image is decided."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from rich.table import Table

from alexlab.data.audit.label_errors import LabelErrors, class_rows
from alexlab.data.audit.relabel import COLUMNS
from alexlab.data.decode import decode
from alexlab.data.image_file import Decoding
from alexlab.errors import ImageError
from alexlab.output.csv_files import csv_bytes, write_csv
from alexlab.output.escape import shown
from alexlab.pages.images import thumbnail_url
from alexlab.pages.render import render
from alexlab.records.cross_validation import OutOfFold

MAX_IMAGES = 600  # images on the page, about 5 kB each; labels.csv has all of them
MAX_CLASSES, MAX_PAIRS = 50, 12  # rows of the tables
PAIR_COLUMNS = ("label", "true class", "images")
CLASS_COLUMNS = ("class", "images", "suspicious", "estimated wrong")


class Suspect(NamedTuple):
    """A suspicious image of the page.

    Args:
        url: the thumbnail as a data URL; "" if the image cannot be read.
        path: path relative to the dataset's folder.
        label: its class.
        proposed: its most probable class.
        quality: probability of the label.
        proposed_prob: probability of the proposed class.
        cells: the row of labels.csv up to the decision.
    """

    url: str
    path: str
    label: str
    proposed: str
    quality: float
    proposed_prob: float
    cells: Markup


@dataclass(frozen=True, eq=False)
class LabelReport:
    """A search for label errors.

    Args:
        predictions: out-of-fold predictions.
        errors: suspicious images.
        root: folder to which the paths of the images are relative.
    """

    predictions: OutOfFold
    errors: LabelErrors
    root: str

    @property
    def headline(self) -> str:
        """Number of suspicious images as a sentence."""
        count, total = len(self.errors.suspects), len(self.predictions.paths)
        return f"{count:,} of {total:,} images have a suspicious label"

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the cells of each suspicious image in labels.csv, the least probable label first."""
        classes, labels, errors = self.predictions.classes, self.predictions.labels, self.errors
        return [
            (
                self.predictions.paths[index],
                classes[labels[index]],
                classes[errors.proposed[index]],
                f"{errors.quality[index]:.4f}",
                f"{self.predictions.probs[index].max():.4f}",
                "",
            )
            for index in errors.suspects.tolist()
        ]

    def pair_rows(self) -> list[tuple[str, str, int]]:
        """Return the names of label and true class and the estimated number of images, the most frequent pair first."""
        classes = self.predictions.classes
        return [(classes[label], classes[true], count) for label, true, count in self.errors.pairs()[:MAX_PAIRS]]

    def class_rows(self) -> list[tuple[str, int, int, int]]:
        """Return the rows of CLASS_COLUMNS, the class with the most wrong labels first."""
        rows = class_rows(self.errors, self.predictions.labels, self.predictions.classes)
        return sorted(rows, key=lambda row: (-row[3], row[0]))[:MAX_CLASSES]


def summary_tables(report: LabelReport) -> list[Table]:
    """Return tables for the terminal: classes, and pairs of classes."""
    tables = []
    for title, columns, rows in (
        (report.headline, CLASS_COLUMNS, report.class_rows()),
        ("images that probably belong to another class", PAIR_COLUMNS, report.pair_rows()),
    ):
        table = Table(title=title)
        for column in columns:
            table.add_column(column, justify="left" if column in ("class", "label", "true class") else "right")
        for row in rows:
            table.add_row(*(shown(cell) if isinstance(cell, str) else f"{cell:,}" for cell in row))
        if rows:
            tables.append(table)
    return tables


def write_labels(report: LabelReport, path: Path) -> None:
    """Write the suspicious images as CSV; their decisions are empty."""
    write_csv(path, [COLUMNS, *report.rows()], errors="surrogateescape")


def write_page(report: LabelReport, path: Path, *, decoding: Decoding, commands: Sequence[str]) -> None:
    """Write a self-contained page that shows suspicious images, stores decisions in the browser and downloads them.

    Args:
        report: the search.
        path: file to write.
        decoding: decoding settings of the images.
        commands: commands that write the corrected manifest and train with it.
    """
    rows, predictions = report.rows(), report.predictions
    suspects = [_suspect(report, row, decoding) for row in rows[:MAX_IMAGES]]
    page = render(
        "labels.html",
        title=f"Labels of {report.root}",
        kind="Label errors",
        num_suspects=f"{len(rows):,}",
        sentence=f"{report.headline}. The weaker the nets, the more of these labels are correct: the nets agree with "
        f"{100 * predictions.accuracy:.1f} % of all labels.",
        facts={
            "Folder": report.root,
            "Images": len(predictions.paths),
            "Classes": len(predictions.classes),
            "Folds": int(predictions.runs[0].num_folds or 0),
            "Runs": len(predictions.runs),
            "Out-of-fold top-1": round(predictions.accuracy, 4),
        },
        pair_columns=PAIR_COLUMNS,
        pair_rows=report.pair_rows(),
        class_columns=CLASS_COLUMNS,
        class_rows=report.class_rows(),
        suspects=suspects,
        others=[_csv_line(row[:-1]) for row in rows[MAX_IMAGES:]],
        header=escape(_csv_line(COLUMNS)),
        key=hashlib.sha256(csv_bytes(rows, errors="surrogateescape")).hexdigest()[:16],
        commands=commands,
    )
    path.write_text(page, encoding="utf-8", errors="replace")


def _suspect(report: LabelReport, row: tuple[Any, ...], decoding: Decoding) -> Suspect:
    path, label, proposed, quality, proposed_prob, _ = row
    try:
        url = thumbnail_url(decode(os.path.join(report.root, path), decoding))
    except ImageError:
        url = ""
    return Suspect(url, path, label, proposed, float(quality), float(proposed_prob), escape(_csv_line(row[:-1])))


def _csv_line(cells: Sequence[Any]) -> str:
    """Return cells as a CSV line without its end; hidden characters stay as they are, so that paths match."""
    return csv_bytes([cells], errors="surrogateescape").decode("utf-8", "replace").rstrip("\r\n")
