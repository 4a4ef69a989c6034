"""The report of several runs: one page that works offline, the same as Markdown and CSV, and its pictures. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexlab.inference.class_names import choose_fonts
from alexlab.output.csv_files import write_csv
from alexlab.output.escape import markdown, plot_label
from alexlab.pages import html
from alexlab.runs.compare import (
    RunGroup,
    RunResult,
    differing_keys,
    find_runs,
    group_seeds,
    key_values,
    main_effects,
    rank_groups,
    read_runs,
    relative,
)
from alexlab.runs.layout import LOGS
from alexlab.runs.record import FAILED, INTERRUPTED

MAX_CURVES = 12  # groups in the picture of the curves: the best ones
MAX_TICKS = 6  # values of a key that are drawn side by side; more numbers are an axis


def write_report(words: Sequence[str], out: Path) -> Path:
    """Reads runs and writes `report.html`, `report.md`, `report.csv` and the pictures.

    Args:
        words: run folders, folders above them, or globs.
        out: the folder to write to.

    Returns:
        The page.

    Raises:
        ConfigError: when there are no runs.
    """
    runs = read_runs(find_runs(words))
    keys = differing_keys(runs)
    groups = group_seeds(runs, keys)
    ranked, clear = rank_groups(groups)
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(runs, keys, out / "report.csv")
    choose_fonts(group.name for group in ranked)
    pictures = _pictures(ranked, keys, out)
    verdict = _verdict(ranked, clear)
    rows = [_group_row(group, keys) for group in [*ranked, *[group for group in groups if not group.values()]]]
    columns = [
        *keys,
        "n",
        "top-1",
        "± sd",
        "top-5",
        "loss",
        "best epoch",
        "train s",
        "images/s",
        "parameters",
        "status",
    ]
    logs = {run.folder: _logs(run, out) for run in runs}
    details = [[*_run_row(run, keys), logs[run.folder], run.status] for run in runs]
    detail_columns = [
        *("run", *keys, "seed", "top-1", "top-5", "loss", "best epoch", "train s", "images/s", "logs", "status")
    ]
    failures = [run for run in runs if run.status in (FAILED, INTERRUPTED)]
    title = f"{len(runs)} runs"
    (out / "report.md").write_text(_markdown(title, verdict, columns, rows, failures), encoding="utf-8")
    return html.write_page(
        out / "report.html",
        title,
        [
            f"<p>{html.text(verdict)}</p>",
            _table(columns, rows, best=clear),
            *(f"<h2>{name}</h2>{html.plot(content, name)}" for name, content in pictures),
            "<h2>Runs</h2>",
            _table(detail_columns, details),
            *(["<h2>Failures</h2>", *(_failure(run, logs[run.folder]) for run in failures)] if failures else []),
        ],
    )


def _verdict(ranked: Sequence[RunGroup], clear: bool) -> str:
    if not ranked:
        return "no run has finished yet"
    best = ranked[0]
    text = f"{best.name}: val/top1 {best.mean():.4f}"
    if len(ranked) == 1:
        return text
    if clear:
        return f"the best: {text}, beyond its uncertainty (95 %) above the next, {ranked[1].mean():.4f}"
    return f"a tie: the highest is {text}, within its uncertainty (95 %) of {ranked[1].name}: {ranked[1].mean():.4f}"


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return round(sum(known) / len(known), 1) if known else None


def _group_row(group: RunGroup, keys: Sequence[str]) -> list[Any]:
    cards = [run.card for run in group.runs]
    states = sorted({run.status for run in group.runs})
    counted = [f"{sum(run.status == state for run in group.runs)} {state}" for state in states]
    return [
        *(str(group.keys[key]) for key in keys),
        len(group.values()),
        group.mean(),
        group.std(),
        group.mean("top5"),
        group.mean("loss"),
        _mean([None if run.score("epoch") is None else (run.score("epoch") or 0) + 1 for run in group.runs]),
        _mean([(card.get("scores") or {}).get("train_s") for card in cards]),
        _mean([card.get("images_per_s") for card in cards]),
        cards[0].get("parameters"),
        ", ".join(counted),
    ]


def _run_row(run: RunResult, keys: Sequence[str]) -> list[Any]:
    epoch = run.score("epoch")
    return [
        relative(run.folder),
        *map(str, key_values(run, keys).values()),
        run.seed,
        *(run.score(name) for name in ("top1", "top5", "loss")),
        None if epoch is None else int(epoch) + 1,
        _mean([(run.card.get("scores") or {}).get("train_s")]),
        _mean([run.card.get("images_per_s")]),
    ]


def _logs(run: RunResult, out: Path) -> html.Html:
    return html.links([run.folder / name for name in LOGS if (run.folder / name).exists()], out)


def _write_csv(runs: Sequence[RunResult], keys: Sequence[str], path: Path) -> None:
    names = ["run", *keys, "seed", "top1", "top5", "loss", "best_epoch", "train_s", "images_per_s", "status"]
    rows = [[*_run_row(run, keys), run.status, run.card.get("parameters"), run.card.get("reason")] for run in runs]
    write_csv(path, [[*names, "parameters", "reason"], *rows])


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, best: bool = False) -> str:
    kinds = []
    for place, row in enumerate(rows):
        status = str(row[-1])
        state = "failed" if "failed" in status else "running" if "running" in status else ""
        kinds.append(f"best {state}".strip() if best and place == 0 else state)
    return html.table(columns, rows, kinds)


def _markdown(
    title: str, verdict: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], failures: Sequence[RunResult]
) -> str:
    lines = [f"# {title}", "", markdown(verdict), "", f"| {' | '.join(map(markdown, columns))} |"]
    lines += [f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(markdown(html.number(value)) for value in row)} |" for row in rows]
    if failures:
        lines += ["", "## Failures", ""]
        said = (f"{relative(run.folder)}: {run.status}: {run.card.get('reason')}" for run in failures)
        lines += [f"- {markdown(text)}" for text in said]
    return "\n".join(lines) + "\n"


def _failure(run: RunResult, logs: html.Html) -> str:
    words = f"<b>{html.text(run.status)}</b>: {html.text(str(run.card.get('reason')))} {logs}"
    return f"<p><code>{html.text(relative(run.folder))}</code> {words}"


def _pictures(ranked: Sequence[RunGroup], keys: Sequence[str], out: Path) -> list[tuple[str, bytes]]:
    drawn = [
        ("Curves", "curves.png", _curves(ranked[:MAX_CURVES])),
        ("Effects", "effects.png", _effects(main_effects(ranked, keys))),
        ("Accuracy against size and time", "scatter.png", _scatter(ranked)),
    ]
    found = []
    for title, name, figure in drawn:
        if figure is None:
            continue
        content = html.png(figure)
        (out / name).write_bytes(content)
        found.append((title, content))
    return found


def _figure(columns: int, height: float = 4.0) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _curves(groups: Sequence[RunGroup]) -> Any:
    """Loss and top-1 over the epochs: the mean of each group, with a band of its seeds; training dashed."""
    if not any(run.epochs for group in groups for run in group.runs):
        return None
    figure, axes = _figure(2, 4.5)
    for axis, name in zip(axes, ("loss", "top1"), strict=True):
        for number, group in enumerate(groups):
            color = f"C{number % 10}"
            for split, style in (("train", "--"), ("val", "-")):
                by_epoch: dict[int, list[float]] = {}
                for run in group.runs:
                    for row in run.epochs:
                        if f"{split}/{name}" in row:
                            by_epoch.setdefault(int(row["epoch"]) + 1, []).append(row[f"{split}/{name}"])
                epochs = sorted(by_epoch)
                means = [sum(by_epoch[epoch]) / len(by_epoch[epoch]) for epoch in epochs]
                label = plot_label(group.name) if split == "val" else None
                axis.plot(epochs, means, style, color=color, label=label, linewidth=1.2)
                if split == "val" and len(group.runs) > 1:
                    low, high = ([f(by_epoch[epoch]) for epoch in epochs] for f in (min, max))
                    axis.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
        axis.set(xlabel="epoch", ylabel={"loss": "loss", "top1": "top-1 accuracy"}[name])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7, title="val; training dashed", title_fontsize=7)
    return figure


def _effects(found: dict[str, dict[str, list[float]]]) -> Any:
    """For each key the mean top-1 of each of its values, with the groups as points."""
    if not found:
        return None
    figure, axes = _figure(min(4, len(found)))
    for axis, (key, values) in zip(axes, found.items(), strict=False):
        names = sorted(values, key=_numbers_first)
        numbers = [_numbers_first(name) for name in names]
        if len(names) > MAX_TICKS and all(number[0] == 0 for number in numbers):
            points = [(number[1], score) for number, name in zip(numbers, names, strict=True) for score in values[name]]
            axis.plot(*zip(*points, strict=True), "o", color="C0")
            wide = numbers[0][1] > 0 and numbers[-1][1] > 10 * numbers[0][1]
            axis.set(title=plot_label(key), ylabel="val/top1", xscale="log" if wide else "linear")
            axis.grid(alpha=0.3)
            continue
        for place, name in enumerate(names):
            axis.plot([place] * len(values[name]), values[name], "o", color="C0", alpha=0.4, markersize=4)
        axis.plot(range(len(names)), [sum(values[name]) / len(values[name]) for name in names], "o-", color="C1")
        axis.set_xticks(range(len(names)), [*map(plot_label, names)], rotation=20, fontsize=8)
        axis.set(title=plot_label(key), ylabel="val/top1")
        axis.grid(alpha=0.3)
    return figure


def _numbers_first(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _scatter(groups: Sequence[RunGroup]) -> Any:
    """Accuracy against the number of parameters and against the time of training."""
    if not groups:
        return None
    figure, axes = _figure(2)
    for axis, measure in zip(axes, ("parameters", "training, s"), strict=True):
        for group in groups:
            cards = [run.card for run in group.runs]
            times = _mean([(card.get("scores") or {}).get("train_s") for card in cards])
            value = cards[0].get("parameters") if measure == "parameters" else times
            if value:
                label = plot_label(group.name)
                axis.errorbar(value, group.mean(), yerr=group.std() or 0, fmt="o", capsize=3, label=label)
        axis.set(xlabel=measure, ylabel="val/top1", xscale="log" if measure == "parameters" else "linear")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    return figure
