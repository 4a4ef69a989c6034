"""The input of a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of a command: its config and the folder that it writes to.

    Args:
        config: composed config as plain data.
        dir: run folder, which exists.
        choices: option selected in each config group.
        overrides: overrides on the command line, as typed.
        isolated: train in a child process even on one device, as every job of a sweep must.
        resumed: continue from the last checkpoint in `dir`.
        changes: overrides that changed the config of a resumed run.
        rehearsed: this process has already rehearsed the config, when it checked all jobs of a sweep.
        recorded_images: entries of the run record about the images that a resumed run must find unchanged.
    """

    config: dict[str, Any]
    dir: Path
    choices: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    isolated: bool = False
    resumed: bool = False
    changes: Sequence[str] = ()
    rehearsed: bool = False
    recorded_images: Mapping[str, Any] = field(default_factory=dict)
