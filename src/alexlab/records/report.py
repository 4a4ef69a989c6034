"""Report that compares runs: a page that works offline, its content as Markdown and CSV, and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexlab.output.csv_files import write_csv
from alexlab.output.escape import escape_markdown
from alexlab.pages.images import data_url
from alexlab.pages.plots import png
from alexlab.pages.render import Link, file_links, format_value, render
from alexlab.records.compare import (
    RunGroup,
    differing_keys,
    group_seeds,
    key_values,
    main_effects,
    mean_or_none,
    rank_groups,
    relative,
)
from alexlab.records.layout import LOGS
from alexlab.records.plots import curves_plot, effects_plot, scatter_plot
from alexlab.records.record import FAILED, INTERRUPTED
from alexlab.records.results import RunResult, find_runs, read_runs, with_tags

METRIC_COLUMNS = ("top-5", "loss", "best epoch", "train s", "images/s")
GROUP_COLUMNS = ("n", "top-1", "± sd", *METRIC_COLUMNS, "parameters", "status")
LABELS = ("tags", "note")  # columns of the runs, if any run has them
CSV_METRICS = ("seed", "top1", "top5", "loss", "best_epoch", "train_s", "images_per_s")
CSV_COLUMNS = (*CSV_METRICS, "status", "parameters", "reason", *LABELS)


def write_report(patterns: Sequence[str], out_dir: Path, *, tags: Sequence[str] = ()) -> Path:
    """Read runs and write `report.html`, `report.md`, `report.csv` and the plots.

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
    ranked, clear = rank_groups(groups)
    sentence = verdict(ranked, clear)
    columns = [*keys, *GROUP_COLUMNS]
    rows = [_group_row(group, keys) for group in [*ranked, *[group for group in groups if not group.values()]]]
    failures = [run for run in runs if run.status in (FAILED, INTERRUPTED)]
    title = f"{len(runs)} runs"
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_csv(runs, keys, out_dir / "report.csv")
    text = _markdown_report(title, sentence, columns, rows, failures)
    (out_dir / "report.md").write_text(text, encoding="utf-8")
    page = render(
        "report.html",
        title=title,
        verdict=sentence,
        columns=columns,
        rows=rows,
        row_classes=_row_classes(rows, mark_best=clear),
        plots=_write_plots(ranked, keys, out_dir),
        **_run_values(runs, keys, out_dir),
        failures=[_failure_values(run, out_dir) for run in failures],
    )
    path = out_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def verdict(ranked: Sequence[RunGroup], clear: bool) -> str:
    """Return a sentence about the result of `rank_groups`: whether one setting is the best."""
    if not ranked:
        return "no run has finished yet"
    best, *others = ranked
    if not others:
        return f"{best.name}: val top-1 {best.mean():.4f}"
    second = others[0]
    if clear:
        return (
            f"Best: {best.name}: val top-1 {best.mean():.4f}; the 95 % interval of the difference to {second.name} "
            f"({second.mean():.4f}) excludes zero."
        )
    return (
        f"No clear winner. {best.name} is highest (val top-1 {best.mean():.4f}), but the 95 % interval of the difference "
        f"to {second.name} ({second.mean():.4f}) includes zero."
    )


def _group_row(group: RunGroup, keys: Sequence[str]) -> list[Any]:
    statuses = [run.status for run in group.runs]
    return [
        *(str(group.keys[key]) for key in keys),
        len(group.values()),
        group.mean(),
        group.std(),
        group.mean("top5"),
        group.mean("loss"),
        mean_or_none([run.best_epoch for run in group.runs], digits=1),
        group.train_s,
        mean_or_none([run.record.get("images_per_s") for run in group.runs], digits=1),
        group.runs[0].record.get("parameters"),
        ", ".join(f"{statuses.count(status)} {status}" for status in sorted({*statuses})),
    ]


def _run_row(run: RunResult, keys: Sequence[str]) -> list[Any]:
    return [
        relative(run.folder),
        *map(str, key_values(run, keys).values()),
        run.seed,
        *(run.score(name) for name in ("top1", "top5", "loss")),
        run.best_epoch,
        mean_or_none([run.train_s], digits=1),
        mean_or_none([run.record.get("images_per_s")], digits=1),
    ]


def _run_values(runs: Sequence[RunResult], keys: Sequence[str], out_dir: Path) -> dict[str, Any]:
    """Return the table of all runs, as variables of the template."""
    labels = [name for name in LABELS if any(getattr(run, name) for run in runs)]
    rows = [
        [*_run_row(run, keys), *(_label(run, name) for name in labels), _log_links(run, out_dir), run.status]
        for run in runs
    ]
    return {
        "run_columns": ["run", *keys, "seed", "top-1", *METRIC_COLUMNS, *labels, "logs", "status"],
        "run_rows": rows,
        "run_row_classes": _row_classes(rows, mark_best=False),
    }


def _label(run: RunResult, name: str) -> str:
    return ", ".join(run.tags) if name == "tags" else run.note


def _failure_values(run: RunResult, out_dir: Path) -> dict[str, Any]:
    return {
        "run": relative(run.folder),
        "status": run.status,
        "reason": run.record.get("reason"),
        "logs": _log_links(run, out_dir),
    }


def _row_classes(rows: Sequence[Sequence[Any]], *, mark_best: bool) -> list[str]:
    """Return the CSS class of each row, whose last cell is the status; the first row may be marked as the best."""
    classes = []
    for number, row in enumerate(rows):
        status = str(row[-1])
        state = "failed" if "failed" in status else "running" if "running" in status else ""
        classes.append(f"best {state}".strip() if mark_best and number == 0 else state)
    return classes


def _log_links(run: RunResult, out_dir: Path) -> list[Link]:
    return file_links([run.folder / name for name in LOGS if (run.folder / name).exists()], out_dir)


def _write_csv(runs: Sequence[RunResult], keys: Sequence[str], path: Path) -> None:
    rows = [
        [
            *_run_row(run, keys),
            *(run.status, run.record.get("parameters"), run.record.get("reason")),
            *(_label(run, name) for name in LABELS),
        ]
        for run in runs
    ]
    write_csv(path, [["run", *keys, *CSV_COLUMNS], *rows])


def _markdown_report(
    title: str, verdict: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], failures: Sequence[RunResult]
) -> str:
    lines = [f"# {title}", "", escape_markdown(verdict), "", f"| {' | '.join(map(escape_markdown, columns))} |"]
    lines += [f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(escape_markdown(format_value(value)) for value in row)} |" for row in rows]
    if failures:
        lines += ["", "## Failures", ""]
        texts = [f"{relative(run.folder)}: {run.status}: {run.record.get('reason')}" for run in failures]
        lines += [f"- {escape_markdown(text)}" for text in texts]
    return "\n".join(lines) + "\n"


def _write_plots(ranked: Sequence[RunGroup], keys: Sequence[str], out_dir: Path) -> dict[str, str]:
    """Write the plots as PNG files, and return them as data URLs by heading."""
    figures = {
        "Curves": ("curves.png", curves_plot(ranked)),
        "Effects": ("effects.png", effects_plot(main_effects(ranked, keys))),
        "Accuracy against size and training time": ("scatter.png", scatter_plot(ranked)),
    }
    urls = {}
    for heading, (name, figure) in figures.items():
        if figure is not None:
            content = png(figure)
            (out_dir / name).write_bytes(content)
            urls[heading] = data_url(content)
    return urls
