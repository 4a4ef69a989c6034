"""Resuming a run: from its own record, in its own folder."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexlab.cli.arguments import last_value, quote_paths
from alexlab.cli.recorded_config import apply_changes, check_foreign, override_keys
from alexlab.config.confinement import check_folder
from alexlab.config.grammar import quote_path
from alexlab.distributed import rendezvous
from alexlab.distributed.ranks import broadcast_run_dir, rank
from alexlab.errors import ConfigError
from alexlab.output.command_line import command_line
from alexlab.records.find import last_run
from alexlab.records.layout import BEST, CHECKPOINT_KEY, EARLIER_LASTS, LAST, LAUNCHER_OVERRIDES, RUN_JSON, SWEEP_JSON
from alexlab.records.lock import lock_holder
from alexlab.records.record import (
    FINISHED,
    INTERRUPTED,
    RUNNING,
    CorruptError,
    RunRecord,
    check_record,
    images_to_match,
)
from alexlab.records.run import Run

log = logging.getLogger(__name__)

ON_CHANGED_DATA = "resume_on_changed_data="
LENGTHS = ("max_epochs", "max_steps")


@dataclass(frozen=True)
class Resumption:
    """A run to be resumed.

    Args:
        run_dir: run folder.
        config: its recorded config with the changes of the command line.
        choices: its recorded options.
        changes: overrides on the command line.
        launcher: overrides of the launcher on the command line.
        recorded_images: entries of the record about the images that must be unchanged.
    """

    run_dir: Path
    config: dict[str, Any]
    choices: dict[str, str]
    changes: Sequence[str]
    launcher: Sequence[str] = ()
    recorded_images: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """Return the arguments for Hydra: log to the run folder and leave its `.hydra` unchanged."""
        folder = quote_path(str(self.run_dir))
        return [f"hydra.run.dir={folder}", "hydra.output_subdir=null", "~hydra.callbacks.run_dirs", *self.launcher]

    def to_run(self, run_dir: Path) -> Run:
        """Return the run for the task."""
        return Run(
            config=self.config,
            dir=Path(broadcast_run_dir(lambda: os.path.relpath(run_dir))),
            choices=self.choices,
            resumed=True,
            changes=self.changes,
            recorded_images=self.recorded_images,
        )


def find_resumption(arguments: Sequence[str]) -> Resumption | None:
    """Return the run that `resume=RUN_DIR` or `resume=last` names, or None without this argument.

    Raises:
        ConfigError: if the run does not exist, is running or finished or has trained for longer, an override would change what
            it computes, or its config or folder refers to files outside the folder.
    """
    wanted = last_value("resume", arguments)
    if wanted is None:
        if any(argument.startswith(ON_CHANGED_DATA) for argument in arguments):
            raise ConfigError(f"{ON_CHANGED_DATA}true needs resume=RUN_DIR")
        return None
    run_dir = last_run("resume=last", [RUN_JSON]) if wanted == "last" else _run_folder(wanted)
    if (run_dir / SWEEP_JSON).is_file():
        raise ConfigError(f"{run_dir} is a sweep folder; use {command_line('train', '-m', f'resume={run_dir}')}")
    record = _read(run_dir)
    launcher = [argument for argument in arguments if argument.startswith(LAUNCHER_OVERRIDES)]
    own = ("resume=", ON_CHANGED_DATA, *LAUNCHER_OVERRIDES)
    changes = quote_paths([argument for argument in arguments if not argument.startswith(own)])
    config = apply_changes(record["config"], changes, run_dir)
    if config["data"].get("root") != record["config"]["data"].get("root"):
        config["data"]["generate"] = None  # a mistyped folder must not be filled with digits
    check_foreign(config, run_dir, confirmed=override_keys(changes))
    check_folder(run_dir)
    rendezvous.join(config["trainer"], timeout_s=config["elastic"]["timeout_s"])
    images = images_to_match(record["data"], classes_only=accepts_changed_data(arguments))
    resumption = Resumption(run_dir, config, record["choices"], changes, launcher, images)
    if rank() > 0:  # rank 0 checks the record, and then updates it
        return resumption
    if record["status"] == RUNNING:
        raise ConfigError(f"{run_dir} is still running as process {lock_holder(run_dir)}; stop it before you resume it")
    before = record["config"]["trainer"]
    has_new_time = config["trainer"].get("max_time") != before.get("max_time")
    if record["status"] == FINISHED and not has_new_time and not is_longer(config["trainer"], than=before):
        limits = [(name, before.get(name)) for name in (*LENGTHS, "max_time")]
        given = " and ".join(f"trainer.{name}={limit}" for name, limit in limits if limit not in (None, -1))
        raise ConfigError(f"{run_dir} is finished with {given}; set a larger value to extend it")
    longest, done = config["trainer"].get("max_epochs"), record["last"].get("epoch", 0)
    if longest not in (None, -1) and longest < done:
        raise ConfigError(
            f"trainer.max_epochs must be at least the {done} epochs that {run_dir} has trained; got {longest}; "
            f"trainer.max_epochs={done} ends it there and scores its best checkpoint"
        )
    return resumption


def accepts_changed_data(arguments: Sequence[str]) -> bool:
    """Return whether `resume_on_changed_data=true` is among the arguments."""
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith(ON_CHANGED_DATA)]
    for value in values:
        if value not in ("true", "false"):
            raise ConfigError(f"{ON_CHANGED_DATA[:-1]} must be true or false; got {value}")
    return values[-1:] == ["true"]


def _run_folder(given: str) -> Path:
    """Return the run folder for a path to the folder, to its run.json or to its last checkpoint."""
    path = Path(given).expanduser()
    if not path.is_file():
        return path
    if path.name == RUN_JSON:
        return path.parent
    run_dir = path.parent.parent
    if path == run_dir / LAST:
        return run_dir
    raise ConfigError(
        f"resume= must be a run folder, or its {LAST}; got {path}. To start a new run from the weights of a "
        f"checkpoint, use model.weights={path}"
    )


def _read(run_dir: Path) -> dict[str, Any]:
    """Return the record of a run, or if run.json is corrupt what its checkpoints store."""
    try:
        return RunRecord(run_dir).read()
    except CorruptError as error:
        if lock_holder(run_dir) is not None:
            raise
        from alexlab.records.safe_load import load_file

        for path in (
            run_dir / LAST,
            *sorted(run_dir.glob(f"{LAST.parent}/{EARLIER_LASTS}"), reverse=True),
            run_dir / BEST,
        ):
            try:
                stored = load_file(path)[CHECKPOINT_KEY]
                entries = {
                    "config": stored["config"],
                    "choices": stored["choices"],
                    "data": {"class_names": stored["classes"]},
                }
                record = check_record({"status": INTERRUPTED, **entries}, path)
            except (ConfigError, KeyError, TypeError):
                continue
            log.warning("%s; using the config in %s", error, path)
            return record
        raise


def is_longer(trainer: dict[str, Any], *, than: dict[str, Any]) -> bool:
    """Return whether no length limit of a `trainer` node is lower than in another one, and at least one is higher."""
    pairs = [[math.inf if node[name] in (None, -1) else node[name] for node in (than, trainer)] for name in LENGTHS]
    return all(after >= before for before, after in pairs) and any(after > before for before, after in pairs)
