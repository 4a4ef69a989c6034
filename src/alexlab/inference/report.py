"""Report of an evaluation: files, tables for the terminal, and a page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from alexlab.inference.members import Member, member_scores, member_tables
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
from alexlab.inference.plots import MIN_IMAGES, calibration_plot, confused_classes, confusion_plot
from alexlab.pages.image_grid import ImageGrid
from alexlab.pages.plots import png, svg
from alexlab.pages.render import column_digits, format_value, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from alexlab.inference.predictions import Predictions

MAX_CLASSES = 30  # rows of the terminal's table; classes.csv has all
MAX_PAIRS = 10
METRIC_COLUMNS = ("metric", "value", "error", "95 % interval")
PAIR_COLUMNS = ("class", "predicted as", "images", "share of the class")


@dataclass(frozen=True)
class Evaluation:
    """Results of a trained network on a labelled split.

    Args:
        predictions: predictions on the N images of the split.
        names: display names of the K classes.
        details: description of the evaluation, plain data: checkpoint, data, split, views.
        members: predictions of each network of an ensemble alone.
    """

    predictions: "Predictions"
    names: Sequence[str]
    details: dict[str, Any]
    members: Sequence[Member] = ()

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
    def plots(self) -> dict[str, "Figure"]:
        """Plots of the confusion matrix and of the calibration, by name."""
        plots = {"calibration": calibration_plot(calibration(self.predictions)[1])}
        if len(confused_classes(self.confusion)):  # none of many classes is confused
            plots["confusion"] = confusion_plot(self.confusion, self.names)
        return plots

    @property
    def metric_rows(self) -> list[tuple[str, float, float | str, str]]:
        """Rows of a table with the columns `METRIC_COLUMNS`; top-5 only if there are more than 5 classes."""
        rows: list[tuple[str, float, float | str, str]] = []
        for name, title in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy")):
            if name == "top1" or len(self.names) > 5:
                low, high = self.metrics[f"{name}_interval"]
                rows.append((title, self.metrics[name], self.metrics[f"{name}_error"], f"{low:.4f} to {high:.4f}"))
        return [
            *rows,
            ("loss (cross-entropy)", self.metrics["loss"], "", ""),
            ("expected calibration error", self.metrics["calibration_error"], "", ""),
        ]

    @property
    def sentence(self) -> str:
        """The top-1 accuracy and its interval as sentences."""
        count, correct = self.metrics["images"], int(self.predictions.correct.sum())
        low, high = self.metrics["top1_interval"]
        found = f"{correct:,} of {count:,} images {'is' if correct == 1 else 'are'}"
        if count == 1:
            found = f"The only image is{'' if correct else ' not'}"
        return f"{found} classified correctly. The 95 % interval is {100 * low:.1f} % to {100 * high:.1f} %."


def write_evaluation(evaluation: Evaluation, out_dir: Path) -> None:
    """Write `scores.json`, `classes.csv`, `confusion.csv`, `predictions.csv` and the plots to a folder."""
    scores = {**evaluation.details, **evaluation.metrics, **member_scores(evaluation.predictions, evaluation.members)}
    (out_dir / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    write_rows(evaluation.classes, out_dir / "classes.csv")
    write_confusion_matrix(evaluation.confusion, evaluation.names, out_dir / "confusion.csv")
    write_predictions(evaluation.predictions, evaluation.names, out_dir / "predictions.csv")
    for name, figure in evaluation.plots.items():
        (out_dir / f"{name}.png").write_bytes(png(figure))


def write_page(
    evaluation: Evaluation, path: Path, title: str, *, kind: str = "Evaluation", grids: Sequence[ImageGrid] = ()
) -> None:
    """Write the page of an evaluation.

    Args:
        evaluation: the results.
        path: HTML file.
        title: title of the page.
        kind: what the page is.
        grids: images, each with a heading.
    """
    num_classes, num_drawn = len(evaluation.names), len(confused_classes(evaluation.confusion))
    text = render(
        "evaluation.html",
        title=title,
        kind=kind,
        score=(f"{100 * evaluation.top1:.2f}", "%", f"Top-1 accuracy, {evaluation.details['split']}"),
        sentence=evaluation.sentence,
        facts={
            **{name.capitalize(): value for name, value in evaluation.details.items()},
            "Images": evaluation.metrics["images"],
            "Classes": num_classes,
        },
        metric_columns=METRIC_COLUMNS,
        metric_rows=evaluation.metric_rows,
        member_tables=_member_tables(evaluation),
        grids=grids,
        plots={name: svg(figure, name) for name, figure in evaluation.plots.items()},
        num_classes=num_classes,
        num_drawn=num_drawn,
        min_images=MIN_IMAGES,
        pair_columns=PAIR_COLUMNS,
        pairs=evaluation.pairs if num_classes > 2 else [],
        class_columns=list(map(_column_title, evaluation.classes[0])),
        class_rows=[list(row.values()) for row in evaluation.classes],
    )
    path.write_text(text, encoding="utf-8")


def summary_tables(evaluation: Evaluation) -> list[Table]:
    """Return tables for the terminal: metrics, classes and most frequent confusions."""
    count = evaluation.metrics["images"]
    metrics = terminal_table(f"{count:,} {'image' if count == 1 else 'images'}", METRIC_COLUMNS, evaluation.metric_rows)
    tables = [
        metrics,
        *(terminal_table(*each) for each in _member_tables(evaluation)),
        _class_table(evaluation.classes),
    ]
    if evaluation.pairs and len(evaluation.classes) > 2:
        tables.append(terminal_table("most frequent confusions", PAIR_COLUMNS, evaluation.pairs[:MAX_PAIRS]))
    return tables


def _member_tables(evaluation: Evaluation) -> list[tuple[str, Sequence[str], list[list[Any]]]]:
    """Return title, columns and rows of the tables of an ensemble: its members and what it gains."""
    with_top5 = len(evaluation.names) > 5
    return member_tables(evaluation.predictions, evaluation.members, with_top5=with_top5)


def terminal_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table of the terminal; numbers are right-aligned and have the same digits in a column."""
    table, digits = Table(title=title), column_digits(rows, columns)
    for column, places in zip(columns, digits, strict=True):
        table.add_column(column, justify="left" if places is None else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(format_value, row, digits))
    return table


def _class_table(rows: Sequence[dict[str, Any]]) -> Table:
    title = "classes"
    if len(rows) > MAX_CLASSES:
        title = f"the {MAX_CLASSES} classes with the lowest recall, of {len(rows)}"
        rows = sorted((row for row in rows if row["images"]), key=lambda row: row["recall"])[:MAX_CLASSES]
    return terminal_table(title, list(map(_column_title, rows[0])), [list(row.values()) for row in rows])


def _column_title(name: str) -> str:
    """Return the head of a column of `class_report`."""
    return name.upper() if name == "f1" else name
