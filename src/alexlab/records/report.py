"""Report that compares runs: a page that works offline, its content as Markdown and CSV, and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexlab.output.command_line import short_path
from alexlab.output.csv_files import write_csv
from alexlab.output.escape import escape_markdown
from alexlab.pages.render import Interval, SortableCell, column_digits, format_value
from alexlab.records.disk_errors import make_out_dir
from alexlab.records.find import find_runs
from alexlab.records.optimized import OptimizedMetric, metric_title
from alexlab.records.out_of_fold import write_out_of_fold
from alexlab.records.ranking import rank_groups, verdict
from alexlab.records.ranking_notes import notes
from alexlab.records.record import FAILED, INTERRUPTED
from alexlab.records.report_page import Table, render_page, title
from alexlab.records.results import RunResult, common_metric, read_runs, with_tags
from alexlab.records.run_groups import RunGroup, group_seeds, mean_interval, mean_or_none
from alexlab.records.settings import differing_keys, key_values, run_keys, score_names
from alexlab.records.significance import Difference

MEASURES = ("Best epoch", "Training, s", "Images/s")
LABELS = ("tags", "note")  # columns of the runs, if any run has them
CSV_MEASURES = ("best_epoch", "train_s", "images_per_s", "status", "parameters", "reason", *LABELS)


def write_report(patterns: Sequence[str], out_dir: Path, *, tags: Sequence[str] = ()) -> Path:
    """Read runs and write `report.html`, `report.md`, `report.csv`, the plots and, of folds, `out_of_fold.csv`.

    Args:
        patterns: run folders, folders that contain them, or globs.
        out_dir: folder to write to.
        tags: only runs that have all of these tags.

    Returns:
        Path of the page.

    Raises:
        ConfigError: if no run is found.
    """
    runs = with_tags(read_runs(find_runs(patterns)), tags)
    keys = differing_keys(runs)
    groups = group_seeds(runs, keys)
    ranking = rank_groups(groups)
    scores = _scores(runs)
    unscored = [group for group in groups if not group.values()]
    differences = [*ranking.differences, *[None] * len(unscored)]
    table = _group_table([*ranking.groups, *unscored], differences, keys, scores)
    make_out_dir(out_dir)
    _write_csv(runs, keys, scores, out_dir / "report.csv")
    write_out_of_fold(groups, keys, out_dir)
    text = _markdown_report(title(runs, keys), [verdict(ranking), *notes(ranking)], table, runs)
    (out_dir / "report.md").write_text(text, encoding="utf-8")
    page = render_page(runs, ranking, keys, out_dir, settings=table, run_table=_run_table(runs, keys, scores))
    path = out_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _scores(runs: Sequence[RunResult]) -> list[str]:
    """Return the names of the scores of runs, first the optimized metric, or of different ones top-1."""
    first = (common_metric(runs) or OptimizedMetric()).key
    return [first, *(name for name in score_names(runs) if name != first)]


def _group_table(
    groups: Sequence[RunGroup], differences: Sequence[Difference | None], keys: Sequence[str], scores: Sequence[str]
) -> Table:
    intervals = [mean_interval(group) if group.optimized.key == scores[0] else None for group in groups]
    ends = [end for interval in intervals if interval for end in interval]
    rows = []
    for group, interval, difference in zip(groups, intervals, differences, strict=True):
        mean, statuses = group.mean(scores[0]), [run.status for run in group.runs]
        row = [
            *(str(group.keys[key]) for key in keys),
            _num_runs(group),
            mean,
            None
            if mean is None or interval is None
            else Interval(interval[0], mean, interval[1], (min(ends), max(ends))),
            group.std(scores[0]),
            *_difference_cells(difference, is_accuracy=group.optimized.is_accuracy),
            *(group.mean(name) for name in scores[1:]),
            _whole(mean_or_none([run.best_epoch for run in group.runs])),
            group.train_s,
            mean_or_none([run.record.get("images_per_s") for run in group.runs]),
            group.parameters,
            ", ".join(f"{statuses.count(status)} {status}" for status in sorted({*statuses})),
        ]
        rows.append(row)
    first, *others = map(metric_title, scores)
    columns = [*keys, "Runs", first, "95 % interval", "± SD", *_difference_columns(first), *others, *MEASURES]
    columns += ["Parameters", "Status"]
    return _without_trivial(Table(columns, rows), first)


def _difference_columns(first: str) -> tuple[str, str]:
    """Return the heads of the columns of `_difference_cells`; `first` is the head of the score that ranks the rows."""
    return f"Difference to best{', points' if first in ('Top-1', 'Top-5') else ''}", "p"


def _difference_cells(difference: Difference | None, *, is_accuracy: bool) -> tuple[SortableCell | None, str | None]:
    """Return a difference with its interval, of accuracies in points, and its p-value."""
    if difference is None:
        return None, None
    scale, digits = (100, 2) if is_accuracy else (1, 4)
    value, low, high = (
        f"{scale * number:+.{digits}f}" for number in (difference.value, difference.low, difference.high)
    )
    p = "<0.001" if difference.p < 0.001 else f"{difference.p:.3f}"
    return SortableCell(difference.value, f"{value} ({low} to {high})"), p


def _without_trivial(table: Table, first: str) -> Table:
    """Drop uninformative columns: top-5 if it is always 1, the parameters if all rows have equally many, and empty columns.

    Args:
        table: the table.
        first: column of the score that ranks the rows, which stays.
    """
    dropped = []
    for number, name in enumerate(table.columns):
        values = {row[number] for row in table.rows if not isinstance(row[number], list)}
        if (
            (name in ("± SD", "95 % interval", *_difference_columns(first)) and values == {None})
            or (name == "Top-5" != first and values <= {None, 1.0})
            or (name == "Parameters" and len(values) == 1 and len(table.rows) > 1)
        ):
            dropped.append(number)
    columns, *rows = (
        [cell for number, cell in enumerate(cells) if number not in dropped] for cells in (table.columns, *table.rows)
    )
    return Table(columns, rows)


def _num_runs(group: RunGroup) -> int | str:
    """Return the number of finished runs, and how many of the folds of each seed they cover."""
    if group.num_folds is None:
        return len(group.values())
    seeds = len({run.seed for run in group.runs})
    return f"{len(group.values())} of {seeds * group.num_folds} folds"


def _whole(value: float | None) -> float | None:
    return int(value) if value is not None and value == int(value) else value


def _run_values(run: RunResult, keys: Sequence[str], scores: Sequence[str]) -> list[Any]:
    return [
        *map(str, key_values(run, keys).values()),
        run.seed,
        *(run.score(name) for name in scores),
        run.best_epoch,
        mean_or_none([run.train_s]),
        mean_or_none([run.record.get("images_per_s")]),
    ]


def _run_table(runs: Sequence[RunResult], keys: Sequence[str], scores: Sequence[str]) -> Table:
    keys = run_keys(runs, keys)
    labels = [name for name in LABELS if any(getattr(run, name) for run in runs)]
    rows = [[*_run_values(run, keys, scores), *(_label(run, name) for name in labels), run.status] for run in runs]
    columns = [*keys, "Seed", *map(metric_title, scores), *MEASURES, *map(str.capitalize, labels), "Status"]
    return _without_trivial(Table(columns, rows), metric_title(scores[0]))


def _label(run: RunResult, name: str) -> str:
    return ", ".join(run.tags) if name == "tags" else run.note


def _write_csv(runs: Sequence[RunResult], keys: Sequence[str], scores: Sequence[str], path: Path) -> None:
    keys = run_keys(runs, keys)
    rows = [
        [
            short_path(run.folder),
            *_run_values(run, keys, scores),
            *(run.status, run.record.get("parameters"), run.record.get("reason")),
            *(_label(run, name) for name in LABELS),
        ]
        for run in runs
    ]
    write_csv(path, [["run", *keys, "seed", *scores, *CSV_MEASURES], *rows])


def _markdown_report(title: str, sentences: Sequence[str], table: Table, runs: Sequence[RunResult]) -> str:
    digits = column_digits(table.rows, table.columns)
    lines = [f"# {escape_markdown(title)}", ""]
    for sentence in sentences:
        lines += [escape_markdown(sentence), ""]
    lines += [f"| {' | '.join(map(escape_markdown, table.columns))} |", f"|{' --- |' * len(table.columns)}"]
    for row in table.rows:
        cells = [format_value(value, places) for value, places in zip(row, digits, strict=True)]
        lines.append(f"| {' | '.join(map(escape_markdown, cells))} |")
    failures = [run for run in runs if run.status in (FAILED, INTERRUPTED)]
    if failures:
        lines += ["", "## Failures", ""]
        texts = [f"{short_path(run.folder)}: {run.status}: {run.record.get('reason')}" for run in failures]
        lines += [f"- {escape_markdown(text)}" for text in texts]
    return "\n".join(lines) + "\n"
