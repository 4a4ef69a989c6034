"""Repeating a run from its card, and saying whether the same came out. Imports no torch."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from alexlab.cli.arguments import quote_paths
from alexlab.cli.resume import check_foreign, is_unchanged, typed_keys
from alexlab.config.grammar import quote_path
from alexlab.errors import ConfigError
from alexlab.runs.record import RunRecord
from alexlab.runs.run import Run

log = logging.getLogger(__name__)

EQUAL_SCORES = ("best/top1", "best/top5", "best/loss", "best/epoch", "test/top1", "test/top5", "test/loss")


@dataclass(frozen=True)
class Rerun:
    """A run that is to be repeated.

    Args:
        first: the folder of the first run.
        config, choices: what it ran.
    """

    first: Path
    config: dict[str, Any]
    choices: dict[str, str]

    def arguments(self) -> list[str]:
        """The command line for Hydra, which makes a new folder named after the first run's."""
        name = quote_path(f"outputs/train/${{now:%Y-%m-%d}}/${{now:%H-%M-%S}}_rerun_{self.first.resolve().name}")
        return [f"hydra.run.dir={name}", "hydra.output_subdir=null"]

    def run(self, task: Callable[..., float | None], run_dir: Path) -> float | None:
        """Repeats the run and tells how it compares."""
        best = task(Run(config=self.config, dir=run_dir, choices=self.choices))
        for line in self.compare(run_dir):
            log.info("%s", line)
        return best

    def compare(self, run_dir: Path) -> list[str]:
        """What differs between the first run and this one, a line each, and whether the scores came out equal."""
        before, now = RunRecord(self.first).read(), RunRecord(run_dir).read()
        lines = []
        if not before["scores"]:
            lines.append(f"{self.first} was {before['status']} and has no final scores to compare with")
        else:
            unequal = [
                f"{name} {before['scores'][name]:.6g}, now {now['scores'].get(name, float('nan')):.6g}"
                for name in EQUAL_SCORES
                if name in before["scores"] and before["scores"][name] != now["scores"].get(name)
            ]
            lines.append("the scores came out equal" if not unequal else f"the scores differ: {'; '.join(unequal)}")
        return lines + [f"what differs: {line}" for line in differences(before, now)]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two runs besides their scores: code, data, versions, machine."""
    lines = []
    codes = [
        (card["code"]["commit"] or "no commit")[:12] + (" with changes" if card["code"]["dirty"] else "")
        for card in (before, now)
    ]
    if codes[0] != codes[1] or any(card["code"]["dirty"] for card in (before, now)):
        lines.append(f"the code: {codes[0]}, now {codes[1]}")
    first, second = (card.get("data", {}) for card in (before, now))
    if first.get("fingerprint") != second.get("fingerprint"):
        lines.append(f"the data: images {first.get('counts')}, now {second.get('counts')}")
    for name in sorted(before["versions"].keys() | now["versions"].keys()):
        versions = [card["versions"].get(name, "none") for card in (before, now)]
        if versions[0] != versions[1]:
            lines.append(f"the version of {name}: {versions[0]}, now {versions[1]}")
    machines = [f"{card['hardware']['cpu']}, {card['hardware']['cores']} cores" for card in (before, now)]
    machines = [
        f"{text}, {', '.join(card.get('gpus') or ['no GPU'])}"
        for text, card in zip(machines, (before, now), strict=True)
    ]
    if machines[0] != machines[1]:
        lines.append(f"the machine: {machines[0]}, now {machines[1]}")
    return lines


def find_rerun(arguments: Sequence[str]) -> Rerun | None:
    """What `rerun=RUN_DIR` among the arguments asks for; None without it.

    Raises:
        ConfigError: when there is no such run, or there is another argument.
    """
    wanted = [argument.partition("=")[2] for argument in arguments if argument.startswith("rerun=")]
    if not wanted:
        return None
    first = Path(wanted[-1]).expanduser()
    card = RunRecord(first).read()
    others = [argument for argument in arguments if not argument.startswith("rerun=")]
    for override in OverridesParser.create().parse_overrides(quote_paths(others)):
        if not is_unchanged(override, OmegaConf.create(card["config"])):
            raise ConfigError(f"rerun= repeats a run as it was, so {override.input_line} is refused")
    check_foreign(card["config"], first, confirmed=typed_keys(others))
    return Rerun(first, card["config"], card["choices"])
