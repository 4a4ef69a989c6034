"""Finding run folders: the last run, and those in or below some folders."""

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from alexlab.errors import ConfigError
from alexlab.records.layout import EARLIER, RUN_JSON, outputs_dir

RUNS = "train/*/*"  # runs below the folder of all runs, without those of sweeps
SKIPPED_FOLDERS = (EARLIER, ".hydra", "checkpoints")


def last_run(wanted: str, files: Sequence[Path | str]) -> Path:
    """Return the run that was started last, among those of this outputs folder that have one of the files.

    Args:
        wanted: words that asked for it, such as `resume=last`, for the message.
        files: paths relative to a run folder.

    Raises:
        ConfigError: if there is no such run.
    """
    started: dict[Path, float] = {}
    for folder in outputs_dir().glob(RUNS):
        try:
            if any((folder / file).is_file() for file in files):
                started[folder] = float(json.loads((folder / RUN_JSON).read_text())["attempts"][-1]["start_s"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
    if not started:
        raise ConfigError(f"{wanted} needs a run in {outputs_dir() / RUNS} that has {' or '.join(map(str, files))}")
    return max(started, key=lambda folder: started[folder])


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """Return run folders sorted by name, numbers by value.

    Args:
        patterns: run folders, folders that contain them at any depth, or globs of either.

    Raises:
        ConfigError: if no run folder is found.
    """
    found: dict[str, Path] = {}  # by the real path: a link to a run is no further run
    for pattern in patterns:
        for name in [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern)) or [pattern]:
            for folder in _run_folders(Path(name)):
                found.setdefault(os.path.realpath(folder), folder)
    if not found:
        raise ConfigError(f"no run found: there is no {RUN_JSON} in or below {', '.join(patterns) or 'nothing'}")
    return sorted(found.values(), key=_natural_order)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield a folder if it is that of a run, else the run folders below it. Those inside a run folder belong to that run."""
    for parent, folders, files in os.walk(folder):
        if RUN_JSON in files:
            yield Path(parent)
            folders.clear()
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]


def _natural_order(path: Path) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]
