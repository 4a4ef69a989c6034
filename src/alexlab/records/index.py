"""`index.html` in the folder of all runs: one page with every run, sweep, evaluation and report below it."""

import html
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alexlab.errors import ConfigError
from alexlab.output.command_line import command_line, short_path
from alexlab.pages.render import Link, SortableCell, render
from alexlab.records.atomic import atomic_path
from alexlab.records.layout import CURVES, LOGS, PREVIEW, outputs_dir
from alexlab.records.listing import ListEntry, count_statuses, date_text, group_sweeps, list_runs, score_text
from alexlab.records.lock import try_lock
from alexlab.records.results import RunResult

INDEX, LOCK, PENDING = "index.html", ".index.lock", ".index.pending"
RUN_COLUMNS = ("run", "status", "best val score", "test top-1", "epochs", "time s", "started", "tags", "note", "files")
SWEEP_COLUMNS = ("sweep", "runs", "best val score", "best run", "started", "report")
PAGE_COLUMNS = ("page", "command", "folder", "written")
MAX_CURVES = 6
TITLE = re.compile(rb"<title>(.*?)</title>", re.DOTALL)

log = logging.getLogger(__name__)


def refresh_index(folder: Path, *, min_age_s: float = 0.0) -> None:
    """Update the index after something in `folder` has ended, if `folder` is in the folder of all runs.

    An error is logged and never raised: the result of the command does not depend on this page.

    Args:
        folder: folder of a run, a sweep or another command.
        min_age_s: leave an index as it is that is not older than this.
    """
    root = outputs_dir()
    try:
        if root.resolve() not in folder.resolve().parents or not folder.is_dir():
            return
        path = root / INDEX
        if not min_age_s or not path.is_file() or time.time() - path.stat().st_mtime > min_age_s:
            update_index(root)
    except (Exception, KeyboardInterrupt) as error:
        log.warning("%s was not updated: %s", root / INDEX, error or type(error).__name__)


def update_index(root: Path) -> None:
    """Write the index of a folder. While another process writes it, that process is asked to do so again.

    So commands that end at the same time neither wait for each other nor leave a page that lacks one of them.
    """
    pending = root / PENDING
    pending.touch()
    while pending.exists():
        with (root / LOCK).open("a") as lock:  # released when it is closed, or the process killed
            if not try_lock(lock):
                return
            pending.unlink(missing_ok=True)
            page = render("index.html", **_values(root))
            with atomic_path(root / INDEX) as partial:
                partial.write_text(page, encoding="utf-8")


def _values(root: Path) -> dict[str, Any]:
    """Return the variables of the template."""
    try:
        runs = list_runs([str(root)])
    except ConfigError:  # no run yet
        runs = []
    entries = group_sweeps(runs)
    newest = sorted(runs, key=lambda run: run.start_s, reverse=True)
    run_folders = {run.folder for run in runs}
    pages = sorted(_pages(root, run_folders), key=lambda page: page.stat().st_mtime, reverse=True)
    reports = {page.parent: page for page in pages}
    sweeps = [entry for entry in entries if entry.is_sweep]
    sweep_folders = {sweep.folder for sweep in sweeps}
    tables = [
        ("Sweeps", SWEEP_COLUMNS, [_sweep_row(root, sweep, reports) for sweep in sweeps], None),
        ("Pages", PAGE_COLUMNS, [_page_row(root, page) for page in pages if page.parent not in sweep_folders], None),
        ("Runs", RUN_COLUMNS, [_run_row(root, run) for run in newest], [_row_class(run.status) for run in newest]),
    ]
    return {
        "title": f"All runs in {short_path(root)}",
        "kind": "runs, sweeps and pages",
        "details": {"runs": ", ".join(count_statuses(runs)) or "none", "sweeps": len(sweeps), "pages": len(pages)},
        "list_command": command_line("runs"),
        "curves": _curves(root, entries),
        "tables": tables,
    }


def _pages(root: Path, run_folders: set[Path]) -> Iterator[Path]:
    """Yield the pages that commands have written, without those in run folders, which the runs link to."""
    for parent, folders, files in os.walk(root):
        folder = Path(parent)
        if folder in run_folders:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (folder / name for name in files if name.endswith(".html") and name != INDEX and name[0] != ".")


def _run_row(root: Path, run: RunResult) -> list[Any]:
    pages = sorted(run.folder.glob("*.html"))
    files = [*pages, *(run.folder / name for name in (CURVES, PREVIEW, *LOGS))]
    elapsed = run.elapsed_s
    return [
        [_link(root, run.folder)],
        run.status,
        _score(run),
        run.record["scores"].get("test/top1"),
        run.last_epoch,
        None if elapsed is None else round(elapsed, 1),
        date_text(run.start_s),
        ", ".join(run.tags),
        run.note or str(run.record.get("reason") or ""),
        [_link(root, path, name=path.name) for path in files if path.is_file()],
    ]


def _sweep_row(root: Path, sweep: ListEntry, reports: dict[Path, Path]) -> list[Any]:
    best, page = sweep.best, reports.get(sweep.folder)
    return [
        [_link(root, sweep.folder)],
        ", ".join(count_statuses(sweep.runs)),
        _score(best),
        [] if best is None else [_link(root, best.folder, name=best.folder.name)],
        date_text(sweep.start_s),
        [] if page is None else [_link(root, page, name=page.name)],
    ]


def _page_row(root: Path, page: Path) -> list[Any]:
    with page.open("rb") as file:
        match = TITLE.search(file.read(4096))
    title = html.unescape(match[1].decode("utf-8", "replace")).strip() if match else page.name
    relative = page.parent.relative_to(root)
    return [
        [_link(root, page, name=title)],
        relative.parts[0] if relative.parts else "",
        str(relative),
        date_text(page.stat().st_mtime),
    ]


def _curves(root: Path, entries: Sequence[ListEntry]) -> list[tuple[str, str, str]]:
    """Return name, URL and caption of the plots of the newest entries that have one; of a sweep, that of its best run."""
    found: list[tuple[str, str, str]] = []
    for run in (entry.best for entry in entries):
        if run is not None and len(found) < MAX_CURVES and (run.folder / CURVES).is_file():
            name, url = _link(root, run.folder)
            found.append((name, f"{url}/{CURVES}", f"{run.status}, val {score_text(run)}"))
    return found


def _row_class(status: str) -> str:
    return {"failed": "failed", "unreadable": "failed", "running": "running"}.get(status, "")


def _link(root: Path, path: Path, *, name: str | None = None) -> Link:
    relative = path.relative_to(root)
    return Link(name or str(relative), quote(os.fsencode(relative)))


def _score(run: RunResult | None) -> SortableCell | None:
    """Return a cell of the best score of a run."""
    if run is None or run.best_score is None:
        return None
    return SortableCell(run.best_score, score_text(run))
