"""Jobs of a sweep that is not a grid, listed in `jobs.json` in its folder."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from alexlab.errors import ConfigError
from alexlab.records.atomic import write_atomic
from alexlab.sweeps.entries import to_entry
from alexlab.sweeps.record import MAX_BYTES, check_entry, job_keys

JOBS = "jobs.json"
NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class ListedJob:
    """One job of the list.

    Args:
        name: name of its run folder inside the sweep folder.
        overrides: overrides of `train.py`, in Hydra's grammar.
    """

    name: str
    overrides: Sequence[str]


def write_jobs(folder: Path, jobs: Sequence[ListedJob]) -> None:
    """Write the jobs of a sweep to its folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / JOBS, (json.dumps([asdict(job) for job in jobs], indent=1) + "\n").encode())


def read_jobs(folder: Path) -> list[ListedJob]:
    """Read the jobs of a sweep. The file may come from someone else, so each override must be a plain one.

    Raises:
        ConfigError: if the file is missing, or holds anything but jobs with distinct names and plain overrides.
    """
    path = folder / JOBS
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
        jobs = [ListedJob(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        for job in jobs:
            _check_job(job)
        if len({job.name for job in jobs}) < len(jobs):
            raise ValueError("two jobs have the same name")
    except FileNotFoundError as error:
        raise ConfigError(f"hydra/sweeper=list needs hydra.sweep.dir=DIR with {JOBS}; {path} does not exist") from error
    except (OSError, ValueError, TypeError, HydraException) as error:
        raise ConfigError(f"{path} is not a list of jobs: {str(error).splitlines()[0]}") from error
    return jobs


def _check_job(job: ListedJob) -> None:
    if not isinstance(job.name, str) or not NAME.fullmatch(job.name):
        raise ValueError(f"a name must consist of letters, digits, '_', '-' and '.'; got {job.name!r}")
    for override in OverridesParser.create().parse_overrides(list(job.overrides)):
        check_entry(to_entry(override), job_keys())
