"""Creation of run and sweep folders before Hydra writes into them, and their removal if nothing was started."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from alexlab.cli.exits import exit_on_any_error
from alexlab.cli.task import to_plain
from alexlab.config.confinement import check_folder
from alexlab.config.grammar import quote_path, raw_overrides
from alexlab.distributed import ranks, rendezvous
from alexlab.errors import ConfigError
from alexlab.output.escape import print_line
from alexlab.records import layout
from alexlab.records.disk_errors import check_free_space
from alexlab.sweeps.jobs import MULTIRUN, STORAGE
from alexlab.sweeps.record import check_sweep_record, make_record, read_record

if TYPE_CHECKING:
    from alexlab.records.lock import RunLock

# Files in a folder in which no work was started.
UNUSED = {".hydra", layout.LOCK, ranks.NODE_MARKER, layout.SWEEP_JSON, MULTIRUN, STORAGE}

# Folders created by the current command, parents first. Hydra builds the callback below, so they cannot be passed to it.
_created: ContextVar[list[Path] | None] = ContextVar("created", default=None)


@contextmanager
def created_folders() -> Iterator[list[Path]]:
    """Collect the folders that are created inside the block."""
    folders: list[Path] = []
    token = _created.set(folders)
    try:
        yield folders
    finally:
        _created.reset(token)


def remove_unused(folders: list[Path]) -> None:
    """Remove folders in which no work was started, so that a rejected command leaves nothing behind."""
    for folder in reversed(folders):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"missing"}
        if not names - UNUSED - {path.name for path in folder.glob("*.log")}:
            shutil.rmtree(folder, ignore_errors=True)


class RunDirs(Callback):
    """Hydra callback that creates the folder of a run or sweep.

    Hydra turns an exception of a callback into a warning, so an error exits the process here.

    Args:
        generated: the command has generated the name `hydra.run.dir`, so that a number is appended if the folder exists.
    """

    def __init__(self, *, generated: bool = False) -> None:
        self.generated = generated

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Join the other ranks, if a launcher started any, and create `hydra.run.dir` on rank 0."""
        with exit_on_any_error(), open_dict(config):
            given = not self.generated and _is_given("hydra.run.dir", config)
            if config.hydra.job.config_name == "train":
                rendezvous.join(to_plain(config.trainer), timeout_s=config.elastic.timeout_s)
            wanted = config.hydra.run.dir
            config.hydra.run.dir = ranks.broadcast_run_dir(lambda: str(_create(wanted, given=given)))
            if ranks.rank() > 0:
                config.hydra.output_subdir = None
                config.hydra.job_logging.root.handlers = ["console"]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create `hydra.sweep.dir` and pass it to the jobs, whose configs are composed again."""
        with exit_on_any_error(), open_dict(config):
            rendezvous.join({"accelerator": "cpu", "devices": 1, "num_nodes": 1}, timeout_s=rendezvous.PEER_TIMEOUT_S)
            if ranks.is_distributed():
                raise ConfigError("a sweep starts the processes of its jobs itself: run it without torchrun")
            given = _is_given("hydra.sweep.dir", config)
            folder, self.lock = _sweep_dir(config, given=given)
            config.hydra.sweep.dir = str(folder)
            if not given:
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quote_path(str(folder))}")


def _is_given(key: str, config: DictConfig) -> bool:
    return any(override.startswith(f"{key}=") for override in raw_overrides(config.hydra.overrides.hydra))


def _sweep_dir(config: DictConfig, *, given: bool) -> "tuple[Path, RunLock]":
    """Return a new folder for a sweep, or the existing folder of the same sweep, and the lock on it."""
    from alexlab.records.lock import RunLock

    folder = Path(config.hydra.sweep.dir)
    record = make_record(OmegaConf.to_container(config)) if config.hydra.job.config_name == "train" else None
    if given and record is not None and (folder / layout.SWEEP_JSON).is_file():
        before = read_record(folder)
        check_folder(folder)
        if before.overrides != record.overrides:
            raise ConfigError(
                f"a sweep needs its own folder; {folder} holds another sweep, {' '.join(before.job_overrides())}"
            )
        check_free_space(folder)
    else:
        folder = _create(config.hydra.sweep.dir, given=given)
    lock = RunLock(folder)
    if record is not None:
        try:
            check_sweep_record(record)
        except ValueError as error:
            print_line(f"if interrupted, this sweep cannot be resumed with -m resume=: {error}", file=sys.stderr)
        record.write(folder)
        # Run the recorded jobs: sampling functions such as `shuffle(...)` would draw others.
        task_overrides = raw_overrides(config.hydra.overrides.task)
        launcher = [override for override in task_overrides if override.startswith(layout.LAUNCHER_OVERRIDES)]
        config.hydra.overrides.task = [*record.job_overrides(), *launcher]
    return folder, lock


def _create(path: str, *, given: bool) -> Path:
    """Create a folder; one that was given by name may exist if it holds no run."""
    created = _created.get()
    created = [] if created is None else created
    folder = Path(path)
    try:
        created.extend(reversed([parent for parent in folder.absolute().parents if not parent.exists()]))
        if given:
            if not folder.exists():
                created.append(folder)
            if any((folder / name).exists() for name in (".hydra", MULTIRUN)):
                raise ConfigError(f"a new run needs a folder of its own; {folder} already contains one")
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = layout.create_folder(path)
            created.append(folder)
        check_free_space(folder)
        return folder
    except OSError as error:
        raise ConfigError(f"the output folder must be writable; cannot create {path}: {error.strerror}") from error
