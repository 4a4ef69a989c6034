"""Repeating a run from its record, and comparing the results."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from alexlab.cli.arguments import last_value, quote_paths
from alexlab.cli.recorded_config import check_foreign, is_unchanged, override_keys
from alexlab.config.grammar import quote_path
from alexlab.distributed import rendezvous
from alexlab.errors import ConfigError
from alexlab.records.differences import record_differences
from alexlab.records.layout import outputs_dir
from alexlab.records.record import RunRecord
from alexlab.records.run import Run

log = logging.getLogger(__name__)

EQUAL_SCORES = ("best/", "test/")


@dataclass(frozen=True)
class Rerun:
    """A run to be repeated.

    Args:
        first: folder of the first run.
        config: its recorded config.
        choices: its recorded options.
    """

    first: Path
    config: dict[str, Any]
    choices: dict[str, str]

    def arguments(self) -> list[str]:
        """Return the arguments for Hydra, with a new run folder named after that of the first run."""
        name = f"${{now:%Y-%m-%d}}/${{now:%H-%M-%S}}_rerun_{self.first.resolve().name}"
        folder = f"hydra.run.dir={quote_path(f'{outputs_dir()}/train/{name}')}"
        return [folder, "+hydra.callbacks.run_dirs.generated=true", "hydra.output_subdir=null"]

    def to_run(self, run_dir: Path) -> Run:
        """Return the run for the task."""
        return Run(config=self.config, dir=run_dir, choices=self.choices)

    def compare(self, run_dir: Path) -> list[str]:
        """Return whether the scores are equal, and a line for each other difference."""
        before, now = RunRecord(self.first).read(), RunRecord(run_dir).read()
        lines = []
        if not before["scores"]:
            lines.append(f"{self.first} was {before['status']} and has no final scores to compare")
        else:
            unequal = [
                f"{name} {before['scores'][name]:.6g}, now {now['scores'].get(name, float('nan')):.6g}"
                for name in before["scores"]
                if name.startswith(EQUAL_SCORES) and before["scores"][name] != now["scores"].get(name)
            ]
            lines.append("the scores are equal" if not unequal else f"the scores differ: {'; '.join(unequal)}")
        differences = record_differences([before], [now])
        return lines + [f"difference: {each.name}: {each.before}, now {each.after}" for each in differences]


def find_rerun(arguments: Sequence[str]) -> Rerun | None:
    """Return the run that `rerun=RUN_DIR` names, or None without this argument.

    Raises:
        ConfigError: if the run does not exist, or an override would change it.
    """
    wanted = last_value("rerun", arguments)
    if wanted is None:
        return None
    first = Path(wanted).expanduser()
    record = RunRecord(first).read()
    others = [argument for argument in arguments if not argument.startswith("rerun=")]
    try:
        parsed = OverridesParser.create().parse_overrides(quote_paths(others))
    except HydraException as error:
        raise ConfigError(*str(error).split("\n")) from error
    for override in parsed:
        if not is_unchanged(override, OmegaConf.create(record["config"])):
            raise ConfigError(f"rerun= repeats a run unchanged, so {override.input_line} is refused")
    check_foreign(record["config"], first, confirmed=override_keys(others))
    rendezvous.join(record["config"]["trainer"], timeout_s=record["config"]["elastic"]["timeout_s"])
    return Rerun(first, record["config"], record["choices"])
