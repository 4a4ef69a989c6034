"""List of runs: newest first, the runs of a sweep together. Only run.json is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from alexlab.errors import ConfigError
from alexlab.records.find import find_runs
from alexlab.records.layout import SWEEP_JSON
from alexlab.records.optimized import metric_label
from alexlab.records.record import FINISHED, STATES, default_record
from alexlab.records.results import RunResult, best_run, read_run, with_tags

UNREADABLE = "unreadable"  # status of a run whose run.json is corrupt; `reason` has the cause
STATUSES = (*STATES, UNREADABLE)


@dataclass(frozen=True)
class ListEntry:
    """A run, or the runs of a sweep.

    Args:
        folder: folder of the run or sweep.
        runs: the run; the runs of the sweep, by name.
        is_sweep: the folder is that of a sweep.
    """

    folder: Path
    runs: Sequence[RunResult]
    is_sweep: bool

    @property
    def start_s(self) -> float:
        """Unix time at which the newest run started."""
        return max(run.start_s for run in self.runs)

    @property
    def best(self) -> RunResult | None:
        """The run with the best optimized metric; None before the first validation, and if they have different metrics."""
        return best_run(self.runs)

    @property
    def num_finished(self) -> int:
        return sum(run.status == FINISHED for run in self.runs)


def list_runs(patterns: Sequence[str], *, statuses: Sequence[str] = (), tags: Sequence[str] = ()) -> list[RunResult]:
    """Return runs sorted by name. Those whose run.json is corrupt have the status `unreadable`.

    Args:
        patterns: run folders, folders that contain them at any depth, or globs of either.
        statuses: only runs with one of these; any if empty.
        tags: only runs that have all of these.

    Raises:
        ConfigError: if there is no such run.
    """
    runs = [_read(folder) for folder in find_runs(patterns)]
    runs = with_tags(runs, tags) if tags else runs
    found = [run for run in runs if run.status in statuses] if statuses else runs
    if not found:
        counts = ", ".join(count_statuses(runs))
        raise ConfigError(f"no run has the status {' or '.join(statuses)}; the runs found: {counts}")
    return found


def group_sweeps(runs: Sequence[RunResult]) -> list[ListEntry]:
    """Return the runs of each sweep as one entry and every other run as its own, newest first."""
    groups: dict[Path, list[RunResult]] = {}
    are_sweeps: dict[Path, bool] = {}
    for run in runs:
        parent = run.folder.parent
        if parent not in are_sweeps:
            are_sweeps[parent] = (parent / SWEEP_JSON).is_file()
        groups.setdefault(parent if are_sweeps[parent] else run.folder, []).append(run)
    entries = [ListEntry(folder, found, are_sweeps.get(folder, False)) for folder, found in groups.items()]
    return sorted(entries, key=lambda entry: (entry.start_s, str(entry.folder)), reverse=True)


def count_statuses(runs: Sequence[RunResult]) -> list[str]:
    """Return how many runs have each status, such as `["3 finished", "1 failed"]`."""
    statuses = [run.status for run in runs]
    return [f"{statuses.count(status)} {status}" for status in STATUSES if status in statuses]


def _read(folder: Path) -> RunResult:
    try:
        return read_run(folder, with_epochs=False)
    except ConfigError as error:
        record = default_record() | {"status": UNREADABLE, "config": {}, "reason": str(error)}
        return RunResult(folder, record, [])


def score_text(run: RunResult | None) -> str:
    """Return the best value of the optimized metric of a run, with its name; empty without one."""
    if run is None or run.best_score is None:
        return ""
    return f"{metric_label(run.optimized.key)} {run.best_score:.4f}"


def date_text(time_s: float) -> str:
    """Return a Unix time as date and time; empty for 0, an unknown time."""
    return f"{datetime.fromtimestamp(time_s):%Y-%m-%d %H:%M}" if time_s > 0 else ""
