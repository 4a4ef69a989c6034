"""Report of an evaluation: files, tables for the terminal, and a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from alexlab.inference.metrics import (
    calibration,
    class_report,
    compute_metrics,
    confused_pairs,
    confusion_matrix,
    write_confusion_matrix,
    write_predictions,
    write_rows,
)
from alexlab.inference.plots import calibration_plot, confusion_plot
from alexlab.pages.images import data_url
from alexlab.pages.plots import png
from alexlab.pages.render import format_value, render

if TYPE_CHECKING:
    from alexlab.inference.predictions import Predictions

MAX_CLASSES = 30  # rows of the terminal's table; classes.csv has all
MAX_PAIRS = 10
METRIC_COLUMNS = ("metric", "accuracy", "error", "95 % interval of the accuracy")
PAIR_COLUMNS = ("class", "predicted as", "images", "fraction of the class")


@dataclass(frozen=True)
class Evaluation:
    """Results of a trained network on a labelled split.

    Args:
        predictions: predictions on the N images of the split.
        names: display names of the K classes.
        details: description of the evaluation, plain data: checkpoint, data, split, views.
    """

    predictions: "Predictions"
    names: Sequence[str]
    details: dict[str, Any]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Accuracies with their intervals, and the loss, see `compute_metrics`."""
        return compute_metrics(self.predictions)

    @property
    def top1(self) -> float:
        """Fraction of the images whose most probable class is the label."""
        return float(self.metrics["top1"])

    @property
    def top5(self) -> float:
        """Fraction of the images whose label is among the 5 most probable classes."""
        return float(self.metrics["top5"])

    @cached_property
    def confusion(self) -> np.ndarray:
        """Number of images by label (row) and predicted class (column), int64 (K, K)."""
        return confusion_matrix(self.predictions, len(self.names))

    @cached_property
    def classes(self) -> list[dict[str, Any]]:
        """Metrics of each class, see `class_report`."""
        return class_report(self.predictions, self.confusion, self.names)

    @cached_property
    def pairs(self) -> list[tuple[str, str, int, float]]:
        """Classes that are confused most often, see `confused_pairs`."""
        return confused_pairs(self.confusion, self.names)

    @cached_property
    def plots(self) -> dict[str, bytes]:
        """PNG files of the confusion matrix and of the calibration, by name."""
        return {
            "confusion": png(confusion_plot(self.confusion, self.names)),
            "calibration": png(calibration_plot(*calibration(self.predictions))),
        }

    @property
    def metric_rows(self) -> list[tuple[str, str, str, str]]:
        """Rows of a table with the columns `METRIC_COLUMNS`."""
        rows = []
        for name, title in (("top1", "top-1"), ("top5", f"top-{min(5, len(self.names))}")):
            low, high = self.metrics[f"{name}_interval"]
            accuracy, error = self.metrics[name], self.metrics[f"{name}_error"]
            rows.append((title, f"{accuracy:.4f}", f"{error:.4f}", f"{low:.4f} to {high:.4f}"))
        return rows


def write_evaluation(evaluation: Evaluation, out_dir: Path) -> None:
    """Write `scores.json`, `classes.csv`, `confusion.csv`, `predictions.csv` and the plots to a folder."""
    scores = {**evaluation.details, **evaluation.metrics}
    (out_dir / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    write_rows(evaluation.classes, out_dir / "classes.csv")
    write_confusion_matrix(evaluation.confusion, evaluation.names, out_dir / "confusion.csv")
    write_predictions(evaluation.predictions, evaluation.names, out_dir / "predictions.csv")
    for name, content in evaluation.plots.items():
        (out_dir / f"{name}.png").write_bytes(content)


def write_page(
    evaluation: Evaluation,
    path: Path,
    title: str,
    *,
    figures: Mapping[str, bytes] | None = None,
    headings: Mapping[str, str] | None = None,
) -> None:
    """Write the page of an evaluation.

    Args:
        evaluation: the results.
        path: HTML file.
        title: title of the page.
        figures: further PNG files by name.
        headings: headings by the name of the figure that they precede.
    """
    text = render(
        "evaluation.html",
        title=title,
        details=evaluation.details,
        metric_columns=METRIC_COLUMNS,
        metric_rows=evaluation.metric_rows,
        pair_columns=PAIR_COLUMNS,
        pairs=evaluation.pairs,
        class_columns=list(evaluation.classes[0]),
        class_rows=[list(row.values()) for row in evaluation.classes],
        plots={name: data_url(content) for name, content in evaluation.plots.items()},
        figures={name: data_url(content) for name, content in (figures or {}).items()},
        headings=headings or {},
    )
    path.write_text(text, encoding="utf-8")


def summary_tables(evaluation: Evaluation) -> list[Table]:
    """Return tables for the terminal: metrics, classes and most frequent confusions."""
    tables = [_metric_table(evaluation), _class_table(evaluation.classes)]
    if evaluation.pairs and len(evaluation.classes) > 2:
        pairs = Table(*PAIR_COLUMNS, title="most frequent confusions")
        for pair in evaluation.pairs[:MAX_PAIRS]:
            pairs.add_row(*map(format_value, pair))
        tables.append(pairs)
    return tables


def _metric_table(evaluation: Evaluation) -> Table:
    metrics = evaluation.metrics
    table = Table(
        title=f"{metrics['images']:,} images",
        caption=f"loss {metrics['loss']:.4f}, expected calibration error {metrics['calibration_error']:.4f}",
    )
    for column in METRIC_COLUMNS:
        table.add_column(column, justify="left" if column == "metric" else "right")
    for row in evaluation.metric_rows:
        table.add_row(*row)
    return table


def _class_table(rows: Sequence[dict[str, Any]]) -> Table:
    title = "classes"
    if len(rows) > MAX_CLASSES:
        title = f"the {MAX_CLASSES} classes with the lowest recall, of {len(rows)}"
        rows = sorted((row for row in rows if row["images"]), key=lambda row: row["recall"])[:MAX_CLASSES]
    table = Table(title=title)
    for column in rows[0]:
        justify: Any = "left" if column in ("class", "confused with") else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(format_value, row.values()))
    return table
