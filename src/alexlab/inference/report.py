"""What an evaluation found, for people: tables in the terminal, parts of a page, files. Imports no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from alexlab.inference.class_names import choose_fonts
from alexlab.inference.metrics import (
    calibration,
    confused_pairs,
    confusion,
    per_class,
    scores,
    write_confusion,
    write_predictions,
    write_rows,
)
from alexlab.inference.plots import calibration_plot, confusion_plot
from alexlab.pages import html

if TYPE_CHECKING:
    from alexlab.inference.predictions import Predictions

MAX_CLASSES = 30  # in the terminal; all are in classes.csv
MAX_PAIRS = 10


def write_evaluation(
    found: "Predictions", names: Sequence[str], out: Path, about: dict[str, Any]
) -> tuple[list[Table], list[str]]:
    """Writes `scores.json`, `classes.csv`, `confusion.csv`, `predictions.csv` and the plots.

    Args:
        found: what the net says.
        names: of the classes.
        out: the folder to write to.
        about: what was write_evaluation, plain data for scores.json.

    Returns:
        Tables for the terminal, and parts of a page.
    """
    matrix, numbers = confusion(found, len(names)), scores(found)
    rows, pairs = per_class(matrix, names), confused_pairs(matrix, names)
    (out / "scores.json").write_text(json.dumps({**about, **numbers}, indent=2) + "\n")
    write_rows(rows, out / "classes.csv")
    write_confusion(matrix, names, out / "confusion.csv")
    write_predictions(found, names, out / "predictions.csv")
    choose_fonts(names)
    plots = {
        "confusion": html.png(confusion_plot(matrix, names)),
        "calibration": html.png(calibration_plot(*calibration(found))),
    }
    for name, content in plots.items():
        (out / f"{name}.png").write_bytes(content)
    counted = _scores_rows(numbers, len(names))
    page = [
        f"<p>{html.text(', '.join(f'{key}: {value}' for key, value in about.items()))}</p>",
        html.table(("score", "accuracy", "error", "95 % interval of the accuracy"), counted),
        "<h2>Confusion</h2>",
        html.plot(plots["confusion"], "confusion matrix"),
        *(["<h3>Most frequent mistakes</h3>", html.table(_PAIRS, pairs)] if pairs else []),
        "<h2>Classes</h2>",
        html.table(list(rows[0]), [list(row.values()) for row in rows]),
        "<h2>Calibration</h2>",
        html.plot(plots["calibration"], "calibration"),
    ]
    return [_summary(numbers, counted), *_tables(rows, pairs)], page


_PAIRS = ("class", "taken for", "images", "part of the class")


def _scores_rows(numbers: dict[str, Any], num_classes: int) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, title in (("top1", "top-1"), ("top5", f"top-{min(5, num_classes)}")):
        low, high = numbers[f"{name}_interval"]
        rows.append((title, f"{numbers[name]:.4f}", f"{numbers[f'{name}_error']:.4f}", f"{low:.4f} to {high:.4f}"))
    return rows


def _summary(numbers: dict[str, Any], counted: Sequence[tuple[str, ...]]) -> Table:
    table = Table(
        title=f"{numbers['images']:,} images",
        caption=f"loss {numbers['loss']:.4f}, calibration error {numbers['calibration_error']:.4f}",
    )
    for column in ("score", "accuracy", "error", "95 % interval of the accuracy"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for row in counted:
        table.add_row(*row)
    return table


def _tables(rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[Any, ...]]) -> list[Table]:
    classes = Table(
        title="classes" if len(rows) <= MAX_CLASSES else f"the {MAX_CLASSES} weakest of {len(rows)} classes"
    )
    for column in rows[0]:
        classes.add_column(column, justify="left" if column in ("class", "mistaken for") else "right", overflow="fold")
    shown = rows
    if len(rows) > MAX_CLASSES:
        shown = sorted((row for row in rows if row["images"]), key=lambda row: row["recall"])[:MAX_CLASSES]
    for row in shown:
        classes.add_row(*(html.number(value) for value in row.values()))
    if not pairs or len(rows) < 3:
        return [classes]
    mistakes = Table(*_PAIRS, title="most frequent mistakes")
    for pair in pairs[:MAX_PAIRS]:
        mistakes.add_row(*(html.number(value) for value in pair))
    return [classes, mistakes]
