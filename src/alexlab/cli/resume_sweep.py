"""Resuming a sweep from its own record."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from alexlab.cli.arguments import MULTIRUN, is_multirun, last_value, quote_paths
from alexlab.cli.recorded_config import check_foreign, override_keys
from alexlab.cli.resume import ON_CHANGED_DATA, accepts_changed_data
from alexlab.config.confinement import check_folder
from alexlab.config.grammar import quote_path
from alexlab.errors import ConfigError
from alexlab.records.layout import LAUNCHER_OVERRIDES
from alexlab.records.record import RunRecord, images_to_match
from alexlab.records.run import Run
from alexlab.sweeps.entries import to_entry
from alexlab.sweeps.record import SweepRecord, read_record

log = logging.getLogger(__name__)

NUM_TRIALS = "hydra.sweeper.num_trials"


@dataclass(frozen=True)
class ResumedSweep:
    """A sweep to be resumed.

    Args:
        folder: sweep folder.
        arguments: arguments for Hydra, rebuilt from the record of the sweep.
        confirmed: keys typed again, whose values may refer to other folders.
        on_changed_data: resume jobs even if their images have changed.
    """

    folder: Path
    arguments: list[str]
    confirmed: Sequence[str] = ()
    on_changed_data: bool = False


def find_resumed_sweep(arguments: Sequence[str]) -> ResumedSweep | None:
    """Return the sweep that `-m resume=SWEEP_DIR` names, or None without this argument.

    Raises:
        ConfigError: if it is not a sweep folder, its record is corrupt, or an argument would change its jobs.
    """
    wanted = last_value("resume", arguments)
    if wanted is None or not is_multirun(arguments):
        return None
    folder = Path(wanted).expanduser()
    record = read_record(folder)
    check_folder(folder)
    own = ("resume=", ON_CHANGED_DATA)
    others = [argument for argument in arguments if argument not in MULTIRUN and not argument.startswith(own)]
    confirmed = [override for override in others if _repeats(override, record.overrides)]
    others = [override for override in others if override not in confirmed]
    refused = [override for override in others if not override.startswith((*LAUNCHER_OVERRIDES, NUM_TRIALS))]
    if refused:
        raise ConfigError(
            f"a resumed sweep keeps its jobs, so {refused[0]} is refused; you can change launcher, launcher.* and, "
            f"of a search, {NUM_TRIALS}"
        )
    hydra = record.hydra_overrides()
    if any(override.startswith(NUM_TRIALS) for override in others):
        hydra = [override for override in hydra if not override.startswith(NUM_TRIALS)]
    launcher = _launcher_overrides(record, folder, others)
    lost = [override for override in record.dropped if override not in others]
    if lost:
        log.warning("overrides of Hydra itself are not restored; type them again if you need them: %s", " ".join(lost))
    sweep_dir = f"hydra.sweep.dir={quote_path(str(folder))}"
    return ResumedSweep(
        folder,
        ["-m", *record.job_overrides(), *hydra, *launcher, *others, sweep_dir],
        override_keys(confirmed),
        accepts_changed_data(arguments),
    )


def _launcher_overrides(record: SweepRecord, folder: Path, others: Sequence[str]) -> list[str]:
    """Return the recorded overrides of the launcher, unless the command line selects another one.

    Raises:
        ConfigError: if they name a Ray cluster that the command line does not confirm.
    """
    if any(override.startswith("launcher=") for override in others):
        return []
    launcher = record.launcher_overrides()
    address = record.settings.get("address") if launcher else None
    if address not in (None, "auto") and not any(override.startswith("launcher.address=") for override in others):
        raise ConfigError(
            f"{folder} ran on the Ray cluster {address}, which would run code on this machine; if you trust it, add "
            f"launcher.address={address} to the command"
        )
    return launcher


def _repeats(override: str, entries: Sequence[dict[str, Any]]) -> bool:
    """Return whether an override repeats one of the record."""
    try:
        parsed = OverridesParser.create().parse_overrides(quote_paths([override]))
    except HydraException:
        return False
    return to_entry(parsed[0]) in entries


def resumed_job(run_dir: Path, config: dict[str, Any], *, sweep: ResumedSweep | None, isolated: bool) -> Run:
    """Return the run for an interrupted job of a sweep.

    Args:
        run_dir: folder of the job.
        config: composed config of the job.
        sweep: the resumed sweep, if this command names one.
        isolated: see Run.
    """
    record = RunRecord(run_dir).read()
    check_foreign(record["config"], run_dir, own=config)
    return Run(
        config=record["config"],
        dir=run_dir,
        choices=record["choices"],
        isolated=isolated,
        resumed=True,
        recorded_images=images_to_match(record["data"], classes_only=sweep is not None and sweep.on_changed_data),
    )
