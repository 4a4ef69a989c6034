"""Table of runs in a terminal of any width."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from alexlab.output.command_line import short_path
from alexlab.output.escape import shown
from alexlab.output.numbers import counted
from alexlab.output.terminal import Terminal
from alexlab.records.listing import UNREADABLE, ListEntry, count_statuses, date_text, group_sweeps, score_text
from alexlab.records.record import FAILED, FINISHED, RUNNING
from alexlab.records.results import RunResult

JOBS = 10  # of a sweep, if other runs are listed too
STYLES = {FINISHED: "green", RUNNING: "cyan", FAILED: "red", UNREADABLE: "red"}
HEADERS = ("status", "score", "epochs", "time", "started", "tags")
OPTIONAL = (4, 5)  # columns that a narrow terminal leaves out, in this order
NUMBERS = (1, 2, 3)
INDENT = 2


@dataclass(frozen=True)
class Line:
    """A run or a sweep in the table.

    Args:
        cells: values of HEADERS.
        path: folder, indented for a run of a sweep.
        style: colour of the status.
        reason: why the run failed.
    """

    cells: Sequence[str]
    path: str
    style: str = ""
    reason: str = ""


def print_runs(terminal: Terminal, runs: Sequence[RunResult], *, limit: int | None, command: str) -> None:
    """Print a line per run and per sweep, newest first, and how many runs are left out.

    Args:
        terminal: output.
        runs: at least one run.
        limit: maximum number of runs; None for all.
        command: command that lists all of them.
    """
    entries = group_sweeps(runs)
    lines: list[Line] = []
    num_shown = 0
    for entry in entries:
        left = len(runs) if limit is None else limit - num_shown
        if left <= 0:
            break
        jobs = left if len(entries) == 1 or limit is None else min(left, JOBS)
        lines += _entry_lines(entry, jobs)
        num_shown += min(len(entry.runs), jobs)
    for line in _layout(lines, terminal.width if terminal.is_terminal else None):
        terminal.print(line, soft_wrap=True)
    terminal.print(f"{counted(len(runs), 'run')}: {', '.join(count_statuses(runs))}")
    if num_shown < len(runs):
        terminal.print(Text(shown(f"{len(runs) - num_shown} more: {command}")), soft_wrap=True)


def _entry_lines(entry: ListEntry, num_runs: int) -> list[Line]:
    """Return the line of a run, or those of a sweep and of its first runs."""
    if not entry.is_sweep:
        (run,) = entry.runs
        return [_run_line(run, short_path(run.folder))]
    status = f"sweep {entry.num_finished}/{len(entry.runs)}"
    lines = [Line((status, score_text(entry.best), "", "", date_text(entry.start_s), ""), short_path(entry.folder))]
    lines += [_run_line(run, f"  {run.folder.name}") for run in entry.runs[:num_runs]]
    num_left = len(entry.runs) - num_runs
    return [*lines, Line([""] * len(HEADERS), f"  {num_left} more")] if num_left > 0 else lines


def _run_line(run: RunResult, path: str) -> Line:
    epochs = "/".join(str(count) for count in (run.last_epoch, run.max_epochs) if count) if run.last_epoch else ""
    elapsed = "" if run.elapsed_s is None else str(timedelta(seconds=round(run.elapsed_s)))
    cells = (run.status, score_text(run), epochs, elapsed, date_text(run.start_s), ", ".join(run.tags))
    reason = str(run.record.get("reason") or "") if run.status in (FAILED, UNREADABLE) else ""
    return Line(cells, path, STYLES.get(run.status, ""), reason)


def _layout(lines: Sequence[Line], width: int | None) -> list[Text]:
    """Return the lines to print: a run on one line if every path fits next to the columns, else on two.

    A path is never cut or broken, so that it can be copied.

    Args:
        lines: runs and sweeps.
        width: width in characters; None for a file.
    """
    rows = [Line(HEADERS, "folder"), *map(_escaped, lines)]
    columns = [number for number in range(len(HEADERS)) if any(line.cells[number] for line in rows[1:])]
    widths = [max(cell_len(line.cells[number]) for line in rows) for number in range(len(HEADERS))]
    path_width = max(cell_len(line.path) for line in rows)

    def fits(kept: Sequence[int], other: int) -> bool:
        return width is None or sum(widths[number] + 2 for number in kept) + other <= width

    short = [number for number in columns if number != OPTIONAL[0]]
    kept = next((kept for kept in (columns, short) if fits(kept, path_width)), None)
    is_inline = kept is not None
    for number in OPTIONAL if kept is None else ():
        columns = columns if fits(columns, INDENT) else [other for other in columns if other != number]
    found = []
    for row in rows:
        cells = Text("  ".join(_cell(row, number, widths[number]) for number in kept or columns))
        cells.stylize("bold" if row is rows[0] else row.style, 0, widths[0])
        indent = " " * (len(row.path) - len(row.path.lstrip()) + INDENT)
        if is_inline:
            found.append(cells + Text(f"  {row.path}"))
        else:
            found += [Text(row.path), *([Text(indent) + cells] if cells.plain.strip() else [])]
        if row.reason:
            found.append(Text(f"{indent}{row.reason}", style=row.style))
            if width is not None:
                found[-1].truncate(width, overflow="ellipsis")
    for text in found:
        text.rstrip()
    return found


def _escaped(line: Line) -> Line:
    return Line([*map(shown, line.cells)], shown(line.path), line.style, shown(line.reason))


def _cell(line: Line, number: int, width: int) -> str:
    text = line.cells[number]
    return text.rjust(width) if number in NUMBERS else set_cell_size(text, width)
