"""Page of a report: what was compared, the result, plots, and links to the runs."""

import os
import re
import shlex
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup

from alexlab.output.command_line import short_path
from alexlab.output.numbers import counted, listed
from alexlab.pages.plots import png, svg
from alexlab.pages.render import Link, file_links, render
from alexlab.records.layout import CURVES, LAUNCHER_OVERRIDES, LOGS
from alexlab.records.optimized import OptimizedMetric, metric_label
from alexlab.records.out_of_fold import OUT_OF_FOLD
from alexlab.records.plots import MAX_SERIES, Panel, curve_panels, sheet
from alexlab.records.ranking import Ranking, verdict
from alexlab.records.ranking_notes import notes
from alexlab.records.record import FAILED, INTERRUPTED, STATES
from alexlab.records.results import RunResult, best_run, common_metric
from alexlab.records.run_groups import RunGroup, main_effects
from alexlab.records.setting_plots import effect_panels, size_panels

MAX_TITLE_KEYS = 3


class Table(NamedTuple):
    """Columns and rows of a table; the last column is the status."""

    columns: list[str]
    rows: list[list[Any]]


def render_page(
    runs: Sequence[RunResult],
    ranking: Ranking,
    keys: Sequence[str],
    out_dir: Path,
    *,
    settings: Table,
    run_table: Table,
) -> str:
    """Return the page, and write its plots as PNG files.

    Args:
        runs: all runs.
        ranking: settings with scores, best first.
        keys: keys that differ between the groups.
        out_dir: folder of the page.
        settings: a row for each group, those of `ranking` first.
        run_table: a row for each run.
    """
    root = common_folder(runs)
    names = [_names_of(run, root, out_dir) for run in runs]
    failed = [number for number, run in enumerate(runs) if run.status in (FAILED, INTERRUPTED)]
    ranked, metric = ranking.groups, common_metric(runs)
    best = [] if not ranked or metric is None else ["best"] if ranking.is_clear else ["first"]
    first = best_run(ranked[0].finished()) if best else None
    return render(
        "report.html",
        title=title(runs, keys),
        kind="Report",
        score=_score(ranked[0]) if best else None,
        verdict=verdict(ranking),
        notes=notes(ranking),
        facts=_facts(runs, root, out_dir),
        settings=settings,
        setting_classes=_row_classes(settings, best),
        colors=[number if number < min(len(ranked), MAX_SERIES) else None for number in range(len(settings.rows))],
        command=None if first is None else repeat_command(first),
        series=[group.name for group in ranked[:MAX_SERIES]],
        num_settings=len(ranked),
        plots=_write_plots(ranked, keys, metric, out_dir),
        run_columns=["Run", *run_table.columns[:-1], "Files", "Status"],
        run_rows=[[links[:1], *row[:-1], links[1:], row[-1]] for links, row in zip(names, run_table.rows, strict=True)],
        run_classes=_row_classes(run_table, []),
        failures=[(names[number], runs[number].status, runs[number].record.get("reason")) for number in failed],
    )


def title(runs: Sequence[RunResult], keys: Sequence[str]) -> str:
    """Return what the runs compare, on which data, and how many there are."""
    data = _join(run.data_name for run in runs)
    if len(keys) > MAX_TITLE_KEYS:
        return f"Comparison of {len(keys)} settings on {data}: {counted(len(runs), 'run')}"
    if keys:
        text = " and ".join(filter(None, [", ".join(keys[:-1]), keys[-1]]))
        return f"Comparison of {text} on {data}: {counted(len(runs), 'run')}"
    model = _join(run.choices.get("model", "a net") for run in runs)
    return f"{model} on {data}: {len(runs)} runs" if len(runs) > 1 else f"{model} on {data}"


def repeat_command(run: RunResult) -> str:
    """Return the command that trains a run again: its overrides, or `rerun=` if others were added when it was resumed."""
    script = Path((run.record["command"] or ["train.py"])[0]).name
    start = ["python", f"src/{script}"] if script.endswith(".py") else ["alexlab", "train"]
    try:
        overrides = yaml.safe_load((run.folder / ".hydra/overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        overrides = None
    if not isinstance(overrides, list) or (run.folder / ".hydra/resume_1").exists():
        return shlex.join([*start, f"rerun={short_path(run.folder)}"])
    typed = run.record["command"][1:]
    start += [each for each in typed if each.startswith(("--config-dir=", "-cd=", "trusted_targets="))]
    start += [f"--config-dir={value}" for flag, value in pairwise(typed) if flag in ("--config-dir", "-cd")]
    own = [str(override) for override in overrides if not str(override).startswith(LAUNCHER_OVERRIDES)]
    plain = [re.sub(r"='([\w./-]+)'$", r"=\1", override) for override in own]  # Hydra needs no quotes around these
    return shlex.join([*start, *plain])


def common_folder(runs: Sequence[RunResult]) -> Path:
    """Return the folder that contains all runs."""
    return Path(os.path.commonpath([run.folder.absolute().parent for run in runs]))


def _names_of(run: RunResult, root: Path, out_dir: Path) -> list[Link]:
    """Return a link to the run's folder, with a short name, and links to its curves and logs."""
    folder, *files = file_links(
        [run.folder, *(run.folder / name for name in (CURVES, *LOGS) if (run.folder / name).exists())], out_dir
    )
    return [Link(os.path.relpath(run.folder.absolute(), root), f"{folder.href}/"), *files]


def _score(best: RunGroup) -> tuple[str, str, str]:
    """Return the score of a group as digits, unit and description: accuracies in percent."""
    mean, spread, count = best.mean() or 0, best.std(), len(best.values())
    scale, places, percent = (100, 2, " %") if best.optimized.is_accuracy else (1, 4, "")
    unit = percent.strip() if spread is None else f"± {scale * spread:.{places}f}{percent}"
    runs = "" if count == 1 else f", {_average(best)}"
    return f"{scale * mean:.{places}f}", unit, f"Validation {metric_label(best.optimized.key)}{runs}"


def _average(group: RunGroup) -> str:
    """Return what the mean and the spread of a group are over."""
    if group.num_folds is None:
        return f"mean ± standard deviation of {len(group.values())} runs"
    is_pooled = group.optimized.key in ("top1", "top5", "loss")  # means over the images
    seeds = len(group.training_scores())
    over = f"{seeds} seeds" if seeds > 1 else counted(len(group.values()), "fold")
    return f"{'pooled score' if is_pooled else 'mean'} of the folds ± standard deviation over {over}"


def _facts(runs: Sequence[RunResult], root: Path, out_dir: Path) -> dict[str, Any]:
    """Return what the runs have in common, by name."""
    statuses = [run.status for run in runs]
    starts = [run.record["start_s"] for run in runs if isinstance(run.record.get("start_s"), int | float)]
    parameters = {run.record.get("parameters") for run in runs}
    values = {
        "Command": _join(shlex.join(run.record["command"]) for run in runs),
        "Data": _join(map(_data_text, runs)),
        "Runs": ", ".join(f"{statuses.count(status)} {status}" for status in STATES if status in statuses),
        "Folder": [Link(f"{short_path(root)}/", f"{file_links([root], out_dir)[0].href}/")],
        "Out of fold": file_links([out_dir / OUT_OF_FOLD], out_dir) if any(run.num_folds for run in runs) else [],
        "Started": time.strftime("%Y-%m-%d %H:%M", time.localtime(min(starts))) if starts else "",
        "Parameters": parameters.pop() if len(parameters) == 1 else None,
        "Code": _join(_code_text(run.record["code"]) for run in runs),
        "Computer": _join(map(_hardware_text, runs)),
    }
    return {name: value for name, value in values.items() if value}


def _join(texts: Any) -> str:
    return listed(list(dict.fromkeys(text for text in texts if text)), 3)


def _data_text(run: RunResult) -> str:
    counts = run.record["data"].get("counts", {})
    parts = [f"{count:,} {name}" for name, count in counts.items()]
    return f"{run.data_name}: {', '.join(parts)} images" if parts else run.data_name


def _code_text(code: dict[str, Any]) -> str:
    commit = str(code["commit"] or "")[:10]
    return f"{commit} with changes (code.diff)" if commit and code["dirty"] else commit


def _hardware_text(run: RunResult) -> str:
    hardware, versions = run.record["hardware"], run.record["versions"]
    gpus = run.record.get("gpus")
    parts = [*(map(str, gpus) if isinstance(gpus, list) else []), f"{hardware['cpu']}, {hardware['cores']} cores"]
    return ", ".join([*parts, f"torch {versions['torch']}"] if "torch" in versions else parts)


def _row_classes(table: Table, first: Sequence[str]) -> list[str]:
    """Return the CSS classes of each row by its status, and those of the first rows."""
    classes = []
    for number, row in enumerate(table.rows):
        status = str(row[-1])
        state = "failed" if "failed" in status else "running" if "running" in status else ""
        classes.append(" ".join(filter(None, [*first[number : number + 1], state])))
    return classes


def _write_plots(
    ranked: Sequence[RunGroup], keys: Sequence[str], metric: OptimizedMetric | None, out_dir: Path
) -> list[tuple[str, str, Markup]]:
    """Write the plots as PNG files and return each as its name, its caption and SVG; only curves without a common metric."""
    shown = ranked[:MAX_SERIES]
    files: dict[str, tuple[Sequence[Panel], Sequence[RunGroup]]] = {
        "curves.png": (curve_panels(ranked), shown),
    }
    if metric is not None:
        files["effects.png"] = effect_panels(main_effects(ranked, keys), metric), ()
        files["scatter.png"] = size_panels(ranked), shown
    for name, (panels, groups) in files.items():
        if panels:
            (out_dir / name).write_bytes(png(sheet(panels, groups)))
    found = [panel for panels, _ in files.values() for panel in panels]
    return [(panel.name, panel.caption, svg(panel.figure(), panel.name)) for panel in found]
