"""Runs that differ only in seed and fold, grouped; their scores with standard deviations and intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alexlab.records.optimized import OptimizedMetric
from alexlab.records.record import FINISHED
from alexlab.records.results import RunResult
from alexlab.records.settings import key_values, value_id


@dataclass
class RunGroup:
    """Runs that differ only in their seed and, in a cross-validation, their fold.

    Args:
        keys: values of the keys that differ between groups.
        runs: runs of the group.
        folds: folds that each seed needs to be counted: those that any group has. Empty without a cross-validation.
    """

    keys: dict[str, Any]
    runs: list[RunResult] = field(default_factory=list)
    folds: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.keys.items()) or "all runs"

    @property
    def train_s(self) -> float | None:
        return mean_or_none([run.train_s for run in self.runs])

    @property
    def optimized(self) -> OptimizedMetric:
        return self.runs[0].optimized

    @property
    def parameters(self) -> int | None:
        """Number of parameters; None if no run has recorded it."""
        return next((count for run in self.runs if (count := run.record.get("parameters")) is not None), None)

    def finished(self) -> list[RunResult]:
        """Return the finished runs; of repeated runs of a seed and fold, which are no independent samples, the newest one."""
        finished = [run for run in self.runs if run.status == FINISHED]
        newest = {(run.seed, run.fold): run for run in sorted(finished, key=lambda run: run.start_s)}
        return [run for run in finished if newest[run.seed, run.fold] is run]

    @property
    def num_repeated(self) -> int:
        """Number of finished runs that repeat the seed and fold of a newer one."""
        return sum(run.status == FINISHED for run in self.runs) - len(self.finished())

    def values(self, name: str | None = None) -> list[float]:
        """Return the scores of the counted runs, by default of the optimized metric."""
        name = name or self.optimized.key
        scores = [run.finite_score(name) for run in self.counted()]
        return [score for score in scores if score is not None]

    def trainings(self) -> dict[int, list[RunResult]]:
        """Return the counted runs of each seed: one run, or those of its folds."""
        found: dict[int, list[RunResult]] = {}
        for run in self.counted():
            found.setdefault(run.seed, []).append(run)
        return dict(sorted(found.items()))

    def counted(self) -> list[RunResult]:
        """Return the finished runs with a finite score, without those of seeds that lack a fold unless all seeds do."""
        scored = [run for run in self.finished() if run.finite_score(self.optimized.key) is not None]
        found: dict[int, set[int | None]] = {}
        for run in scored:
            found.setdefault(run.seed, set()).add(run.fold)
        complete = {seed for seed, folds in found.items() if self.folds <= folds}
        return [run for run in scored if run.seed in complete] if complete else scored

    @property
    def missing_folds(self) -> list[int]:
        """The folds that no seed has together with all others; empty if a seed is complete."""
        found = [sorted(self.folds - {run.fold for run in runs}) for runs in self.trainings().values()]
        return min(found, key=lambda folds: len(folds), default=[])

    @property
    def num_incomplete(self) -> int:
        """Number of finished runs that do not count, because their seed lacks a fold or their score is not finite."""
        return len(self.finished()) - len(self.counted())

    def training_scores(self) -> dict[int, float]:
        """Return the score of each seed; empty if all lack a fold."""
        if self.missing_folds:
            return {}
        means = {seed: RunGroup(self.keys, runs).mean() for seed, runs in self.trainings().items()}
        return {seed: mean for seed, mean in means.items() if mean is not None}

    def samples(self) -> list[float]:
        """Return independent samples of the optimized metric: the scores of the seeds, or of the folds of a single seed."""
        seeds = [*self.training_scores().values()]
        return seeds if len(seeds) > 1 else self.values()

    @property
    def num_folds(self) -> int | None:
        """Number of folds of a cross-validation; None without one."""
        return self.runs[0].num_folds

    @property
    def num_images(self) -> int:
        """Number of different validation images of the counted runs: of all folds, or of one run."""
        return sum({run.fold: run.num_val for run in self.counted() or self.runs}.values())

    def mean(self, name: str | None = None) -> float | None:
        """Return the mean over the runs; of folds the pooled score, in which each validation image counts once per seed."""
        name = name or self.optimized.key
        scores = [(score, run.num_val or 1) for run in self.counted() if (score := run.finite_score(name)) is not None]
        if not scores:
            return None
        values, weights = zip(*scores, strict=True)
        return statistics.fmean(values, weights if self.num_folds else None)

    def std(self, name: str | None = None) -> float | None:
        """Return the standard deviation over the seeds, or over the folds of a single seed; None for fewer than two."""
        values = self.samples() if name in (None, self.optimized.key) else self.values(name)
        return statistics.stdev(values) if len(values) > 1 else None


def mean_interval(group: RunGroup) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean score of a group: over its seeds, or over the images of its folds or single run.

    The first is Student's, the second Wilson's. With another metric than an accuracy, the interval of a single seed is Student's
    over its folds. None if the group has no finished run, or a single one whose metric is not an accuracy.
    """
    values, mean, is_accuracy = group.samples(), group.mean(), group.optimized.is_accuracy
    if mean is None or (len(values) == 1 and not is_accuracy):
        return None
    from scipy.stats import t

    from alexlab.records.significance import CONFIDENCE, wilson_interval  # imports NumPy

    if is_accuracy and (group.num_folds or len(values) == 1):
        count = max(1, group.num_images)
        return wilson_interval(round(min(1.0, max(0.0, mean)) * count), count)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return (max(0.0, mean - half), min(1.0, mean + half)) if is_accuracy else (mean - half, mean + half)


def group_seeds(runs: Sequence[RunResult], keys: Sequence[str]) -> list[RunGroup]:
    """Return the runs grouped by the values of the keys, so that the runs of a group differ only in seed and fold."""
    groups: dict[str, RunGroup] = {}
    folds: dict[int | None, set[int]] = {}  # by number of folds
    for run in runs:
        if run.status == FINISHED and run.fold is not None:
            folds.setdefault(run.num_folds, set()).add(run.fold)
    for run in runs:
        values, needed = key_values(run, keys), frozenset(folds.get(run.num_folds, ()))
        group = str({key: value_id(value) for key, value in values.items()})
        groups.setdefault(group, RunGroup(values, folds=needed)).runs.append(run)
    return list(groups.values())


def main_effects(groups: Sequence[RunGroup], keys: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Return for each key that differs and each of its values the scores of the finished runs that have it."""
    effects: dict[str, dict[str, list[float]]] = {}
    for key in keys:
        by_value: dict[str, list[float]] = {}
        for group in groups:
            if scores := group.values():
                by_value.setdefault(str(group.keys[key]), []).extend(scores)
        if len(by_value) > 1:
            effects[key] = by_value
    return effects


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None, rounded to one decimal; None if all are None."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    return round(sum(known) / len(known), 1)
