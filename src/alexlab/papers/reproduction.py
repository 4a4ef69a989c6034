"""One reproduction of a paper on disk: its plan, its runs and their results."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexlab.config.data import find_splits
from alexlab.data.fingerprint import describe_images
from alexlab.errors import ConfigError
from alexlab.output.escape import shown
from alexlab.papers.measurement import Measurement
from alexlab.papers.measures import epochs_needed, measure, top1, training_errors
from alexlab.papers.paper import Claim, Paper, PaperRun, missing_root, planned_run, used_settings
from alexlab.papers.training import state_of
from alexlab.records.atomic import write_atomic
from alexlab.records.disk_errors import make_out_dir
from alexlab.records.layout import RUN_JSON
from alexlab.records.record import FAILED, FINISHED
from alexlab.records.results import RunResult, find_run
from alexlab.records.settings import changed_values

RUNS, PLAN = "runs", "reproduce.json"


@dataclass(frozen=True)
class Reproduction:
    """A paper, the part of it that is reproduced, and where.

    Args:
        paper: the paper.
        claims: its claims that are reproduced, by name.
        scale: small or full.
        num_seeds: runs per setting, with the seeds 1, 2, ...
        roots: folders of images by key; None for one that is not given.
        folder: folder of the page and, below it, of the runs.
    """

    paper: Paper
    claims: Mapping[str, Claim]
    scale: str
    num_seeds: int
    roots: Mapping[str, str | None]
    folder: Path

    @property
    def runs_dir(self) -> Path:
        return self.folder / RUNS

    @property
    def trained_claims(self) -> dict[str, Claim]:
        """The claims whose images are given."""
        return {
            name: claim for name, claim in self.claims.items() if missing_root(self.paper, claim, self.roots) is None
        }

    @property
    def settings(self) -> list[str]:
        """The settings that the claims need."""
        return used_settings(self.trained_claims)

    @property
    def memory_gb(self) -> float:
        """Memory of the largest run on a CPU."""
        return max(self.paper.recipes[self.paper.settings[name].recipe].memory_gb[self.scale] for name in self.settings)

    def plan(self, seed: int, name: str, rate: float | None = None) -> PaperRun:
        return planned_run(self.paper, name, self.scale, self.roots, seed=seed, rate=rate)

    def seeds_of(self, name: str) -> range:
        """Return the seeds of a setting: `num_seeds`, or more if one of its claims needs them."""
        needed = [claim.min_seeds for claim in self.trained_claims.values() if name in claim.settings]
        return range(1, max([self.num_seeds, *needed]) + 1)

    def first_runs(self) -> list[PaperRun]:
        """Return the runs that need no result of others: all seeds, or all rates with the first seed."""
        runs = []
        for name in self.settings:
            rates = self.paper.settings[name].rates
            runs += [self.plan(1, name, rate) for rate in rates]
            runs += [self.plan(seed, name) for seed in self.seeds_of(name) if not rates]
        return runs

    def later_runs(self) -> list[PaperRun]:
        """Return the other seeds at the best rate of each setting whose rates have all been tried."""
        chosen = {name: self.best_rate(name) for name in self.settings if self.paper.settings[name].rates}
        return [
            self.plan(seed, name, rate)
            for name, rate in chosen.items()
            if rate is not None
            for seed in self.seeds_of(name)[1:]
        ]

    def best_rate(self, name: str) -> float | None:
        """Return the rate with which the first seed needs the fewest epochs, of equal ones the lowest training error.

        None while the run of a rate has neither finished nor failed.
        """
        tried: dict[float, RunResult] = {}
        for rate in self.paper.settings[name].rates:
            run = find_run(self.runs_dir / self.plan(1, name, rate).name)
            if run is None or run.status not in (FINISHED, FAILED):
                return None
            if run.status == FINISHED:
                tried[rate] = run
        return min(tried, key=lambda rate: (epochs_needed(tried[rate]), training_errors(tried[rate])[-1]), default=None)

    def finished(self, name: str) -> list[RunResult]:
        """Return the finished runs of a setting, at its best rate if it has several, in the order of their seeds."""
        rate = None
        if self.paper.settings[name].rates:
            rate = self.best_rate(name)
            if rate is None:
                return []
        runs = [find_run(self.runs_dir / self.plan(seed, name, rate).name) for seed in self.seeds_of(name)]
        return [run for run in runs if run is not None and run.status == FINISHED]

    def all_finished(self) -> list[RunResult]:
        """Return the finished runs of all settings at all rates."""
        states = state_of([*self.first_runs(), *self.later_runs()], self.runs_dir)
        return [run for run in states.values() if run is not None and run.status == FINISHED]

    def failed(self) -> list[PaperRun]:
        """Return the planned runs that have failed, without those at a learning rate that another one replaces."""
        chosen = {name for name in self.settings if self.best_rate(name) is not None}
        planned = [*(run for run in self.first_runs() if run.setting not in chosen), *self.later_runs()]
        states = state_of(planned, self.runs_dir)
        return [run for run in planned if (found := states[run.name]) and found.status == FAILED]

    def check_recipes(self, compose: Callable[[Sequence[str]], dict[str, Any]]) -> None:
        """Check that the runs in the folder were trained with the recipes of the paper as they are now.

        Args:
            compose: returns the config of `train.py` for some overrides.

        Raises:
            ConfigError: if a recipe has changed, so that new runs could not be compared with the old ones.
        """
        planned = [*self.first_runs(), *self.later_runs()]
        configs: dict[tuple[str, float | None], dict[str, Any]] = {}
        for run, found in zip(planned, state_of(planned, self.runs_dir).values(), strict=True):
            if found is None:
                continue
            key = run.setting, run.rate
            if key not in configs:
                configs[key] = compose(run.overrides)
            changes = changed_values(found.record["config"], configs[key])
            if changes:
                before, now = (" ".join(f"{name}={values[end]}" for name, values in changes.items()) for end in (0, 1))
                raise ConfigError(
                    f"{run.name} must have been trained with the settings of its recipe; it has {before}, and the recipe now has "
                    f"{now}: restore the recipe, or set out=DIR to a new folder"
                )

    def check_images(self) -> None:
        """Check that the images of each recipe are those of its finished runs.

        Raises:
            ConfigError: if they have changed, so that new runs could not be compared with the old ones.
        """
        checked: set[str] = set()
        planned = self.first_runs()
        for run, found in zip(planned, state_of(planned, self.runs_dir).values(), strict=True):
            recipe = self.paper.settings[run.setting].recipe
            recorded = found and found.status == FINISHED and found.record.get("data", {}).get("fingerprint")
            if found is None or not recorded or recipe in checked:
                continue
            checked.add(recipe)
            splits = find_splits(found.record["config"])
            if describe_images(splits)["fingerprint"] != recorded:
                raise ConfigError(
                    f"the images of {shown(splits.train.root)} must be those of {run.name}, but they have changed since; set "
                    "out=DIR to a new folder"
                )

    def measure(self, claim: Claim) -> Measurement | None:
        """Return the result of a claim; None while runs are missing."""
        if missing_root(self.paper, claim, self.roots) is not None:
            return None
        recipe = self.paper.settings[claim.settings[0]].recipe
        others = [
            top1(self.finished(name))
            for name in self.settings
            if name not in claim.settings and self.paper.settings[name].recipe == recipe
        ]
        return measure(claim, {name: self.finished(name) for name in claim.settings}, [each for each in others if each])

    def record(self, runs: Sequence[PaperRun]) -> None:
        """Add runs to the plan in the folder.

        Raises:
            ConfigError: if the folder has a run with other overrides, which this call would mix with its own.
        """
        path = self.folder / PLAN
        try:
            before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            known = {
                str(name): [str(override) for override in overrides]
                for name, overrides in before.items()
                if (self.runs_dir / str(name) / RUN_JSON).is_file()
            }
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"{path} is corrupt: {error}") from error
        for run in runs:
            theirs = known.get(run.name, list(run.overrides))
            if theirs != list(run.overrides):
                old = " ".join(override for override in theirs if override not in run.overrides) or "fewer overrides"
                new = " ".join(override for override in run.overrides if override not in theirs) or "fewer overrides"
                raise ConfigError(
                    f"{self.folder} has runs with other settings: {run.name} was trained with {old} instead of {new}; set "
                    "out=DIR to a new folder"
                )
        make_out_dir(self.folder)
        planned = {str(name): overrides for name, overrides in before.items()}
        plan = planned | known | {run.name: list(run.overrides) for run in runs}
        write_atomic(path, (json.dumps(plan, indent=1) + "\n").encode())
