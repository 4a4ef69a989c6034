"""Report of a comparison: files, tables for the terminal, and a page."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from alexlab.config.grammar import to_text
from alexlab.inference.compare.comparison import OUTCOMES, Comparison, SidePredictions, p_text
from alexlab.inference.compare.sides import Side
from alexlab.inference.compare.sources import Evaluated, Kept
from alexlab.inference.report import terminal_table
from alexlab.output.csv_files import write_csv
from alexlab.output.numbers import listed
from alexlab.pages.image_grid import ImageGrid
from alexlab.pages.render import render
from alexlab.records.differences import code_differences, config_differences, record_differences
from alexlab.records.results import RunResult
from alexlab.records.significance import wilson_interval

MAX_CLASSES = 30  # rows of the terminal's table
MIN_LOSS_PROB = 1e-12
CAUTION = (
    "The test applies only to these two networks and these images. Another seed of the same settings may give a different "
    "result; to compare settings, use a report over several seeds."
)


@dataclass(frozen=True)
class Context:
    """Sides of a comparison, and the sources of their predictions.

    Args:
        sides: A and B.
        sources: for each side, the sources of its predictions.
    """

    sides: Sequence[Side]
    sources: Sequence[Sequence[Kept | Evaluated]]

    @property
    def all_sources(self) -> list[Kept | Evaluated]:
        return list(chain(*self.sources))

    @property
    def split_name(self) -> str:
        """Name of the split; that of the side whose data is divided into splits."""
        names = [source.split_name for source in self.all_sources]
        return next((name for name in names if name != "all"), "all")

    @cached_property
    def runs(self) -> list[list[RunResult]]:
        """The runs that trained the nets of each side; an empty list for a file that does not record them."""
        found = []
        for side, sources in zip(self.sides, self.sources, strict=True):
            runs = [member.run for member in side.members if member.run is not None]
            evaluated = [source for source in sources if isinstance(source, Evaluated)]
            found.append(runs or [run for source in evaluated for run in source.trained])
        return found

    @property
    def first_runs(self) -> list[RunResult]:
        """The first run of each side, the settings of which are those of all its runs; none if a side has none."""
        return [runs[0] for runs in self.runs] if all(self.runs) else []

    @property
    def notes(self) -> list[str]:
        """Sentences about the sides and the origin of their predictions."""
        notes = [f"{name}: {side.note}" for name, side in zip("AB", self.sides, strict=True) if side.note]
        evaluated = [
            name
            for name, sources in zip("AB", self.sources, strict=True)
            if any(isinstance(each, Evaluated) for each in sources)
        ]
        if not evaluated:
            notes.append("The predictions are those that the runs have kept; nothing was evaluated.")
            folders = [listed(list(dict.fromkeys(run.data_name for run in runs))) for runs in self.runs]
            if all(folders) and folders[0] != folders[1]:
                notes.append(
                    f"The images are those of {folders[0]} and of {folders[1]}, matched by path: they must be the same."
                )
            return notes
        others = "" if len(evaluated) == 2 else "; the other's predictions are those that its run has kept"
        return [*notes, f"Evaluated: {' and '.join(evaluated)}{others}."]

    @cached_property
    def config_rows(self) -> list[list[str]]:
        """The settings that differ, as overrides: name of the key, A, B."""
        if not self.first_runs:
            return []
        rows = [_overrides(each) for each in config_differences(self.first_runs, groups=True)]
        seeds = [", ".join(dict.fromkeys(str(run.seed) for run in runs)) for runs in self.runs]
        folds = [", ".join(dict.fromkeys(str(run.fold) for run in runs if run.fold is not None)) for runs in self.runs]
        more = [row for row in (["seed", *seeds], ["data.fold", *folds]) if row[1] != row[2]]
        return [*rows, *more]

    @cached_property
    def key_rows(self) -> list[list[str]]:
        """All keys of the config that differ, if some of them are those of differing config groups."""
        if not self.first_runs:
            return []
        rows = [_overrides(each) for each in config_differences(self.first_runs, groups=False)]
        return rows if {row[0] for row in rows} - {row[0] for row in self.config_rows} else []

    @cached_property
    def record_rows(self) -> list[list[str]]:
        """Differences in code, images, versions and machine."""
        if not self.first_runs:
            return []
        a, b = ([run.record for run in runs] for runs in self.runs)
        return [list(each) for each in record_differences(a, b)]


def _overrides(difference: Any) -> list[str]:
    cells = [f"{difference.key}={to_text(value[0])}" if value else "not set" for value in difference.values]
    return [difference.key, *cells]


def score_rows(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the scores of A and B; top-5 only with more than 5 classes."""
    with_top5 = len(comparison.classes) > 5
    columns = [
        "",
        "top-1 accuracy",
        "95 % interval",
        *(["top-5 accuracy"] if with_top5 else []),
        "loss (cross-entropy)",
    ]
    rows: list[list[Any]] = []
    for name, side in (("A", comparison.a), ("B", comparison.b)):
        correct = comparison.num_correct(side)
        low, high = wilson_interval(correct, len(comparison))
        top5 = [float(side.in_top5.mean())] if with_top5 else []
        rows.append([name, correct / len(comparison), f"{low:.4f} to {high:.4f}", *top5, _loss(side)])
    difference = comparison.difference
    others = [f"{after - before:+.4f}" for before, after in zip(rows[0][3:], rows[1][3:], strict=True)]
    interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return columns, [*rows, ["B minus A", f"{difference.value:+.4f}", interval, *others]]


def _loss(side: SidePredictions) -> float:
    return float(-np.log(np.maximum(side.label_prob.astype(np.float64), MIN_LOSS_PROB)).mean())


def outcome_rows(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the table of images by outcome."""
    both, only_b, only_a, wrong = comparison.counts
    rows = [["A right", both, only_a, both + only_a], ["A wrong", only_b, wrong, only_b + wrong]]
    return ["", "B right", "B wrong", "all"], [*rows, ["all", both + only_b, only_a + wrong, len(comparison)]]


def summary_tables(comparison: Comparison, context: Context) -> list[Table]:
    """Return tables for the terminal: scores, outcomes, classes and differing settings."""
    count = len(comparison)
    title = f"{context.split_name}: {count:,} {'image' if count == 1 else 'images'}"
    tables = [
        terminal_table(title, *score_rows(comparison)),
        terminal_table("images", *outcome_rows(comparison)),
        _class_table(comparison.class_rows()),
    ]
    rows = [*context.config_rows, *context.record_rows]
    return [*tables, terminal_table("differences", ["", "A", "B"], rows)] if rows else tables


def _class_table(rows: Sequence[dict[str, Any]]) -> Table:
    title = "classes"
    if len(rows) > MAX_CLASSES:
        title = f"the {MAX_CLASSES} classes with the largest difference, of {len(rows)}"
        rows = sorted(rows, key=lambda row: -abs(row["difference"]))[:MAX_CLASSES]
    return terminal_table(title, *_class_cells(rows))


def _class_cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the table of classes."""
    cells = [
        [*list(row.values())[:6], f"{row['difference']:+.4f}", f"{row['low']:+.4f} to {row['high']:+.4f}"]
        for row in rows
    ]
    return [*list(rows[0])[:7], "95 % interval"], cells


def write_files(comparison: Comparison, context: Context, out_dir: Path) -> None:
    """Write `comparison.csv` with a row per image, and `scores.json`."""

    def rows() -> Iterator[list[Any]]:
        yield ["path", "label", "a", "a_prob", "b", "b_prob", "outcome"]
        for row, path in enumerate(comparison.paths):
            cells = [
                cell
                for side in (comparison.a, comparison.b)
                for cell in (comparison.classes[side.predicted[row]], f"{side.prob[row]:.6f}")
            ]
            yield [path, comparison.classes[comparison.labels[row]], *cells, OUTCOMES[comparison.outcomes[row]]]

    write_csv(out_dir / "comparison.csv", rows())
    scores = {
        **{
            name: {
                "name": side.name,
                "checkpoints": [str(member.path) for member in side.members],
                "top1": comparison.num_correct(predictions) / len(comparison),
                "top5": float(predictions.in_top5.mean()),
                "loss": _loss(predictions),
            }
            for name, side, predictions in zip("ab", context.sides, (comparison.a, comparison.b), strict=True)
        },
        "split": context.split_name,
        "images": len(comparison),
        **{name.lower().replace(" ", "_"): count for name, count in zip(OUTCOMES, comparison.counts, strict=True)},
        "difference": asdict(comparison.difference),
    }
    (out_dir / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def write_page(comparison: Comparison, context: Context, path: Path, grids: Sequence[ImageGrid]) -> None:
    """Write the page of a comparison.

    Args:
        comparison: the results.
        context: what was compared.
        path: HTML file.
        grids: images that only one of them classifies correctly.
    """
    a, b = context.sides
    text = render(
        "compare.html",
        title=f"{a.title} and {b.title}: {context.split_name} split",
        kind="Comparison",
        score=(f"{100 * comparison.difference.value:+.2f}", "points", "Top-1 accuracy, B minus A"),
        verdict=comparison.verdict,
        facts={
            "A": a.name,
            "B": b.name,
            "Split": context.split_name,
            "Images": len(comparison),
            "McNemar": p_text(comparison.difference.p),
        },
        notes=[*context.notes, *comparison.notes, CAUTION],
        scores=score_rows(comparison),
        outcomes=outcome_rows(comparison),
        grids=grids,
        classes=_class_cells(comparison.class_rows()),
        has_runs=bool(context.first_runs),
        config_rows=context.config_rows,
        key_rows=context.key_rows,
        record_rows=context.record_rows,
        diffs=code_differences(context.first_runs) if context.first_runs else [],
    )
    path.write_text(text, encoding="utf-8")
