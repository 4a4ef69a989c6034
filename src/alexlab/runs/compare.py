"""Runs side by side: read back from their folders, compared by the keys that differ, seeds put together. Imports no torch."""

import csv
import glob
import logging
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexlab.errors import ConfigError
from alexlab.runs.layout import CARD, EARLIER, METRICS
from alexlab.runs.record import FINISHED, Card

log = logging.getLogger(__name__)

# Keys that say where a run was made and how it was watched, not what it is.
NO_DIFFERENCE = (
    "data.cache_dir",
    "data.num_workers",
    "data.preview",
    "callbacks.",
    "logger.",
    "elastic.",
    "seed",
    "class_names",
)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class RunResult:
    """One run, as its folder tells it.

    Args:
        folder: its folder.
        card: its run.json.
        epochs: the rows of its metrics.csv, as numbers.
    """

    folder: Path
    card: dict[str, Any]
    epochs: Sequence[dict[str, float]]

    @property
    def status(self) -> str:
        return str(self.card["status"])

    @property
    def seed(self) -> int:
        return int(self.card["seed"])

    @property
    def choices(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.card["choices"].items()}

    def score(self, name: str) -> float | None:
        """`top1`, `top5`, `loss` or `epoch` of the best validation; None before there was one."""
        value = (self.card.get("best") or {}).get(name)
        return None if value is None else float(value)


@dataclass
class RunGroup:
    """Runs that differ in their seed only.

    Args:
        keys: what tells the group from the others.
        runs: its runs, by seed.
    """

    keys: dict[str, Any]
    runs: list[RunResult] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.keys.items()) or "all runs"

    def values(self, name: str = "top1") -> list[float]:
        """The scores of the finished runs."""
        scores = [run.score(name) for run in self.runs if run.status == FINISHED]
        return [score for score in scores if score is not None]

    def mean(self, name: str = "top1") -> float | None:
        values = self.values(name)
        return statistics.mean(values) if values else None

    def std(self, name: str = "top1") -> float | None:
        """The standard deviation over the seeds; None of fewer than two."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else None

    def variance_of_mean(self) -> tuple[float, int]:
        """Of the mean top-1, and its degrees of freedom: over seeds, or of one run over its validation images."""
        values, spread = self.values(), self.std()
        if spread is not None:
            return spread**2 / len(values), len(values) - 1
        count = max(1, int(self.runs[0].card.get("data", {}).get("counts", {}).get("val", 1)))
        return values[0] * (1 - values[0]) / count, count


def find_runs(words: Sequence[str]) -> list[Path]:
    """The run folders among and below folders and globs, in the order of their names.

    Raises:
        ConfigError: when there is none.
    """
    found: set[Path] = set()
    for word in words:
        for place in glob.glob(word) or [word]:
            below = [path.parent for path in Path(place).rglob(CARD) if EARLIER not in path.parts]
            found.update([Path(place)] if (Path(place) / CARD).is_file() else below)
    if not found:
        raise ConfigError(f"a report needs run folders; there is no {CARD} in or below {', '.join(words) or 'nothing'}")
    return sorted(found, key=lambda path: [int(p) if p.isdigit() else p for p in _parts(str(path))])


def _parts(text: str) -> Iterator[str]:
    """Text with its numbers apart, so that 10 comes after 9."""
    word = ""
    for character in text:
        if word and character.isdigit() != word[-1].isdigit():
            yield word
            word = ""
        word += character
    yield word


def read_runs(folders: Sequence[Path]) -> list[RunResult]:
    """Return the runs in folders, some of which may still be running; those with corrupt files are logged and left out.

    Raises:
        ConfigError: when none can be read.
    """
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except ConfigError as error:
            problems.append(error)
    if not runs and problems:
        raise problems[0]
    for problem in problems:
        log.warning("left out: %s", problem)
    return runs


def read_run(folder: Path) -> RunResult:
    """Return a run from its folder.

    Raises:
        ConfigError: when one of its files is corrupt.
    """
    epochs: list[dict[str, float]] = []
    path = folder / METRICS
    try:
        if path.is_file():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            epochs = [{str(name): float(value) for name, value in row.items() if value} for row in rows]
    except (ValueError, TypeError, csv.Error) as error:
        raise ConfigError(f"{path} is corrupt: {error}") from error
    return RunResult(folder, Card(folder).read(), epochs)


def differing_keys(runs: Sequence[RunResult]) -> list[str]:
    """The keys of the configs that are not the same in all runs; an option of a group stands for its keys."""
    configs = [_flat(run.card["config"]) for run in runs]
    groups = [name for name in runs[0].choices if len({run.choices.get(name) for run in runs}) > 1]
    names = dict.fromkeys(name for config in configs for name in config)
    keys = [name for name in names if len({repr(config.get(name)) for config in configs}) > 1]
    keys = [name for name in keys if not name.startswith(NO_DIFFERENCE) and name.split(".")[0] not in groups]
    # A group that differs hides the keys that it sets, but not those that were changed besides.
    kept = [key for group in groups for key in _changed_besides(group, runs, configs)]
    return [*groups, *keys, *kept]


def _changed_besides(group: str, runs: Sequence[RunResult], configs: Sequence[dict[str, Any]]) -> list[str]:
    by_option: dict[str, list[dict[str, Any]]] = {}
    for run, config in zip(runs, configs, strict=True):
        by_option.setdefault(run.choices[group], []).append(config)
    names = dict.fromkeys(name for config in configs for name in config if name.startswith(f"{group}."))
    return [
        name
        for name in names
        if any(len({repr(config.get(name)) for config in same}) > 1 for same in by_option.values())
    ]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    found: dict[str, Any] = {}
    for name, inner in node.items():
        found |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return found


def key_values(run: RunResult, keys: Sequence[str]) -> dict[str, Any]:
    """What a run has for each of the keys that differ."""
    config = _flat(run.card["config"])
    return {key: run.choices[key] if key in run.choices else config.get(key) for key in keys}


def group_seeds(runs: Sequence[RunResult], keys: Sequence[str]) -> list[RunGroup]:
    """Runs that differ in their seed only, together."""
    groups: dict[str, RunGroup] = {}
    for run in runs:
        values = key_values(run, keys)
        groups.setdefault(repr(values), RunGroup(values)).runs.append(run)
    return list(groups.values())


def rank_groups(groups: Sequence[RunGroup]) -> tuple[list[RunGroup], bool]:
    """The groups with scores, the best first, and whether the best is better than the next beyond its uncertainty.

    The difference of two means is compared with Welch's 95 % interval; a single run counts by its validation images.
    """
    ranked = sorted((group for group in groups if group.values()), key=lambda group: -(group.mean() or 0))
    if len(ranked) < 2:
        return ranked, False
    from scipy.stats import t

    (first, first_df), (second, second_df) = ranked[0].variance_of_mean(), ranked[1].variance_of_mean()
    difference = (ranked[0].mean() or 0) - (ranked[1].mean() or 0)
    if first + second == 0:
        return ranked, difference > 0
    df = (first + second) ** 2 / (first**2 / first_df + second**2 / second_df)
    return ranked, bool(difference > t.ppf((1 + CONFIDENCE) / 2, df) * math.sqrt(first + second))


def main_effects(groups: Sequence[RunGroup], keys: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """For each key and each of its values, the mean top-1 of the groups that have it."""
    found: dict[str, dict[str, list[float]]] = {}
    for key in keys:
        of_key: dict[str, list[float]] = {}
        for group in groups:
            mean = group.mean()
            if mean is not None:
                of_key.setdefault(str(group.keys[key]), []).append(mean)
        if len(of_key) > 1:
            found[key] = of_key
    return found


def relative(path: Path) -> str:
    """A folder as a person at this terminal would type it."""
    return os.path.relpath(path)
