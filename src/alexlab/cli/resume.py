"""Resuming a run or a sweep: from its own record, in its own folder. Imports no torch.

Hydra alone would compose the config again from today's `conf/` and overwrite the run's `.hydra`. So `resume=` is read before
Hydra starts: the config in the run's record is the base, and the command line may change what extends or moves a run, not what
it is. The folder may be a stranger's: see `alexlab.config.confinement`.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alexlab.cli import overrides
from alexlab.cli.arguments import quote_paths
from alexlab.config import CONFIG_DIR
from alexlab.config.allowlist import check_targets
from alexlab.config.confinement import check_confined, check_folder
from alexlab.config.grammar import quote_path
from alexlab.distributed import rendezvous
from alexlab.distributed.ranks import broadcast_run_dir, rank
from alexlab.errors import ConfigError
from alexlab.runs.layout import BEST, CHECKPOINT_KEY, EARLIER_LASTS, LAST, LAUNCHER_OVERRIDES, RUN_JSON
from alexlab.runs.lock import lock_holder
from alexlab.runs.record import FINISHED, INTERRUPTED, RUNNING, CorruptError, RunRecord, check_record, images_to_match
from alexlab.runs.run import Run
from alexlab.sweeps.entries import to_entry
from alexlab.sweeps.record import RECORD, read_record

log = logging.getLogger(__name__)

RUNS = "outputs/train/*/*"
ON_CHANGED_DATA = "resume_on_changed_data="
NUM_TRIALS = "hydra.sweeper.num_trials"
LENGTHS = ("max_epochs", "max_steps")
# What a resumed run may be given: how long, where and how watched.
CHANGEABLE = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time"),
    *("trainer.devices", "trainer.accelerator", "trainer.num_nodes"),
    *("data.root", "data.splits", "data.url", "data.num_workers", "data.cache", "data.cache_dir", "data.on_error"),
    *("data.stream.prefetch_shards", "data.stream.cache_gb"),
    *("callbacks.", "logger.", "elastic.", "test."),
)
# Without these nodes a config is none of ours.
GROUPS = (
    *("model", "data", "augmentation", "loss", "optimizer", "scheduler", "trainer", "callbacks", "logger"),
    *("compile", "elastic", "param_groups", "test"),
)


@dataclass(frozen=True)
class Resumption:
    """Another attempt at a run.

    Args:
        run_dir: its folder.
        config: its own config with what the command line changes.
        choices: the options that were chosen for it.
        changes: the overrides of the command line.
        where: those that say where it runs.
        recorded_images: what its record says of its images, as far as it must still hold.
    """

    run_dir: Path
    config: dict[str, Any]
    choices: dict[str, str]
    changes: Sequence[str]
    where: Sequence[str] = ()
    recorded_images: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """Return the command line for Hydra, which logs into the folder and leaves its `.hydra` alone."""
        folder = quote_path(str(self.run_dir))
        return [f"hydra.run.dir={folder}", "hydra.output_subdir=null", "~hydra.callbacks.folders", *self.where]

    def run(self, task: Callable[..., float | None], run_dir: Path) -> float | None:
        """Resume the run."""
        run_dir = Path(broadcast_run_dir(lambda: os.path.relpath(run_dir)))
        run = Run(
            config=self.config,
            dir=run_dir,
            choices=self.choices,
            resumed=True,
            changes=self.changes,
            recorded_images=self.recorded_images,
        )
        return task(run)


def find_resumption(arguments: Sequence[str]) -> Resumption | None:
    """Return what `resume=RUN_DIR` or `resume=last` among the arguments asks for; None without it.

    Raises:
        ConfigError: when there is no such run, it is running or finished, an argument would make another run of it, or its
            folder or config leads out of the folder.
    """
    wanted = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    if not wanted:
        if any(argument.startswith(ON_CHANGED_DATA) for argument in arguments):
            raise ConfigError(f"{ON_CHANGED_DATA}true goes with resume=RUN_DIR")
        return None
    run_dir = _last_run() if wanted[-1] == "last" else _run_folder(wanted[-1])
    if (run_dir / RECORD).is_file():
        raise ConfigError(f"{run_dir} is the folder of a sweep: python src/train.py -m resume={run_dir}")
    card = _read(run_dir)
    where = [argument for argument in arguments if argument.startswith(LAUNCHER_OVERRIDES)]
    own = ("resume=", ON_CHANGED_DATA, *LAUNCHER_OVERRIDES)
    changes = quote_paths([argument for argument in arguments if not argument.startswith(own)])
    config = changed(card["config"], changes, run_dir)
    check_foreign(config, run_dir, confirmed=typed_keys(changes))
    check_folder(run_dir)
    rendezvous.join(config["trainer"], timeout_s=config["elastic"]["timeout_s"])
    images = images_to_match(card["data"], classes_only=accepts_changed_data(arguments))
    found = Resumption(run_dir, config, card["choices"], changes, where, images)
    if rank() > 0:  # rank 0 looks at the card, and writes on it at once
        return found
    if card["status"] == RUNNING:
        raise ConfigError(f"a run that is resumed must have ended; process {lock_holder(run_dir)} is writing {run_dir}")
    if card["status"] == FINISHED and not is_longer(config["trainer"], than=card["config"]["trainer"]):
        limits = [(name, card["config"]["trainer"][name]) for name in LENGTHS]
        given = " and ".join(f"trainer.{name}={limit}" for name, limit in limits if limit not in (None, -1))
        raise ConfigError(f"{run_dir} is finished, with {given}; a larger number extends it")
    return found


def check_foreign(
    config: dict[str, Any], folder: Path, *, confirmed: Sequence[str] = (), own: dict[str, Any] | None = None
) -> None:
    """Raise ConfigError when a config from the folder of a run would call, write or send what it may not.

    Args:
        config, folder, confirmed, own: as for `check_confined`.
    """
    missing = [name for name in GROUPS if not isinstance(config.get(name), dict)]
    if missing:
        raise ConfigError(f"the config in {folder} must have the groups {', '.join(GROUPS)}; {missing[0]} is missing")
    check_targets(config)
    check_confined(config, folder, confirmed=confirmed, own=own)


def typed_keys(words: Sequence[str]) -> list[str]:
    """Return the keys of overrides."""
    return [word.partition("=")[0].lstrip("+~") for word in words]


def accepts_changed_data(arguments: Sequence[str]) -> bool:
    """Return whether `resume_on_changed_data=true` is among the arguments."""
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith(ON_CHANGED_DATA)]
    for value in values:
        if value not in ("true", "false"):
            raise ConfigError(f"{ON_CHANGED_DATA[:-1]} must be true or false; got {value}")
    return values[-1:] == ["true"]


def _run_folder(given: str) -> Path:
    """The folder of a run that is named by itself, by its record, or by its last checkpoint."""
    path = Path(given).expanduser()
    if not path.is_file():
        return path
    if path.name == RUN_JSON:
        return path.parent
    run_dir = path.parent.parent
    if path == run_dir / LAST:
        return run_dir
    raise ConfigError(
        f"resume= must be the folder of a run, or its {LAST}; got {path}. A new run starts from the weights of a "
        f"checkpoint with model.weights={path}"
    )


def _read(run_dir: Path) -> dict[str, Any]:
    """The record of a run; where run.json is corrupt, what its checkpoints say."""
    try:
        return RunRecord(run_dir).read()
    except CorruptError as error:
        if lock_holder(run_dir) is not None:
            raise
        from alexlab.runs.safe_load import load_file

        for path in (
            run_dir / LAST,
            *sorted(run_dir.glob(f"{LAST.parent}/{EARLIER_LASTS}"), reverse=True),
            run_dir / BEST,
        ):
            try:
                about = load_file(path)[CHECKPOINT_KEY]
                known = {
                    "config": about["config"],
                    "choices": about["choices"],
                    "data": {"class_names": about["classes"]},
                }
                found = check_record({"status": INTERRUPTED, **known}, path)
            except (ConfigError, KeyError, TypeError):
                continue
            log.warning("%s; using the config in %s", error, path)
            return found
        raise


def is_longer(trainer: dict[str, Any], *, than: dict[str, Any]) -> bool:
    """Return whether no limit of a `trainer` node is lower than that of another one, and one is higher."""
    pairs = [[math.inf if node[name] in (None, -1) else node[name] for node in (than, trainer)] for name in LENGTHS]
    return all(after >= before for before, after in pairs) and any(after > before for before, after in pairs)


def changed(config: dict[str, Any], arguments: Sequence[str], run_dir: Path) -> dict[str, Any]:
    """The config with the changes of a command line, each of which must be one that leaves the run what it is."""
    result = OmegaConf.create(config)
    try:
        parsed = OverridesParser.create().parse_overrides(list(arguments))
        for override in parsed:
            if is_unchanged(override, result):
                continue
            _check(override, run_dir)
            overrides.check_override(override, result)
            value = override.value()
            if isinstance(value, str):  # the config is plain data, in which nothing is resolved or escaped
                value = value.replace("\\${", "${")
            OmegaConf.update(result, override.key_or_group, value, merge=False)
    except HydraException as error:
        raise ConfigError(*str(error).split("\n")) from error
    plain: Any = OmegaConf.to_container(result)
    return dict(plain)


def is_unchanged(override: Override, config: Any) -> bool:
    """Return whether an override repeats what the config has: it confirms a value that leads out of the folder."""
    try:
        found = OmegaConf.select(config, override.key_or_group)
    except OmegaConfBaseException:
        return False
    return override.type == OverrideType.CHANGE and found is not None and found == override.value()


def _check(override: Override, run_dir: Path) -> None:
    key = override.key_or_group
    if (CONFIG_DIR / key).is_dir():
        raise ConfigError(
            f"a resumed run keeps its {key}, so {override.input_line} is refused; start a new run for another {key}"
        )
    if override.is_add() or override.is_force_add() or override.is_delete() or not key.startswith(CHANGEABLE):
        raise ConfigError(
            f"a resumed run keeps its config, so {override.input_line} is refused; of {run_dir} you can change "
            f"{', '.join(f'{name}*' if name.endswith('.') else name for name in CHANGEABLE)}"
        )


def _last_run() -> Path:
    """The run that was begun last."""
    begun: dict[Path, float] = {}
    for folder in Path().glob(RUNS):
        try:
            begun[folder] = json.loads((folder / RUN_JSON).read_text())["attempts"][-1]["start_s"]
        except (OSError, ValueError, KeyError):
            continue
    if not begun:
        raise ConfigError(f"resume=last needs a run in {RUNS}; there is none")
    return max(begun, key=lambda folder: begun[folder])


@dataclass(frozen=True)
class ResumedSweep:
    """Another attempt at a sweep.

    Args:
        folder: its folder.
        arguments: the command line for Hydra, rebuilt from the record of the sweep.
        confirmed: keys typed again, whose values may lead out of the folder.
        on_changed_data: resume jobs although their images are not those that they began with.
    """

    folder: Path
    arguments: list[str]
    confirmed: Sequence[str] = ()
    on_changed_data: bool = False


def find_resumed_sweep(arguments: Sequence[str]) -> ResumedSweep | None:
    """Return what `-m resume=SWEEP_DIR` among the arguments asks for; None without it.

    Raises:
        ConfigError: when it is no folder of a sweep, its record is not one that we have written, or another argument would
            make another sweep of it.
    """
    wanted = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    if not wanted or not any(argument in ("-m", "--multirun") for argument in arguments):
        return None
    folder = Path(wanted[-1]).expanduser()
    record = read_record(folder)
    check_folder(folder)
    own = ("resume=", ON_CHANGED_DATA)
    others = [
        argument for argument in arguments if argument not in ("-m", "--multirun") and not argument.startswith(own)
    ]
    confirmed = [word for word in others if _repeats(word, record.overrides)]
    others = [word for word in others if word not in confirmed]
    refused = [word for word in others if not word.startswith((*LAUNCHER_OVERRIDES, NUM_TRIALS, "--config-dir="))]
    if refused:
        raise ConfigError(
            f"a resumed sweep keeps its jobs, so {refused[0]} is refused; you can change launcher, launcher.* and, "
            f"of a search, {NUM_TRIALS}"
        )
    hydra = record.hydra_overrides()
    if any(word.startswith(NUM_TRIALS) for word in others):
        hydra = [word for word in hydra if not word.startswith(NUM_TRIALS)]
    launcher = [] if any(word.startswith("launcher=") for word in others) else record.launcher_overrides()
    address = record.settings.get("address") if launcher else None
    if address not in (None, "auto") and not any(word.startswith("launcher.address=") for word in others):
        raise ConfigError(
            f"{folder} ran on the Ray cluster {address}, which would run code on this machine; if you trust it, add "
            f"launcher.address={address} to the command"
        )
    lost = [word for word in record.dropped if word not in others]
    if lost:
        log.warning(
            "not restored, since they are words for Hydra itself; type them again if you need them: %s", " ".join(lost)
        )
    place = f"hydra.sweep.dir={quote_path(str(folder))}"
    return ResumedSweep(
        folder,
        ["-m", *record.job_overrides(), *hydra, *launcher, *others, place],
        typed_keys(confirmed),
        accepts_changed_data(arguments),
    )


def _repeats(word: str, entries: Sequence[dict[str, Any]]) -> bool:
    """Whether a word of the command line says what the record says."""
    try:
        parsed = OverridesParser.create().parse_overrides(quote_paths([word]))
    except HydraException:
        return False
    return to_entry(parsed[0]) in entries
