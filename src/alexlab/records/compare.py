"""Comparison of runs: grouped by the keys that differ, averaged over seeds, ranked."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alexlab.records.optimized import MODES, OptimizedMetric
from alexlab.records.record import FINISHED
from alexlab.records.results import RunResult

# Prefixes of keys that do not affect the result.
IGNORED_KEYS = (
    "data.cache_dir",
    "data.num_workers",
    "data.preview",
    "logger.",
    "elastic.",
    "seed",
    "class_names",
    "tags",
    "note",
)
IGNORED_GROUPS = ("callbacks", "launcher", "logger", "sweep")  # `callbacks` is compared by name, see `_settings`
IGNORED_CALLBACKS = ("checkpoint", "lr", "progress", "epochs", "layers", "diagnosis", "histograms", "pruning")
GLOBAL_GROUPS = ("experiment", "ablation")  # whose options may set any key
MEASURED = "measured"
FOLD = "data.fold"  # runs that differ only in their fold are grouped, like those of different seeds


@dataclass
class RunGroup:
    """Runs that differ only in their seed and, in a cross-validation, their fold.

    Args:
        keys: values of the keys that differ between groups.
        runs: runs of the group.
    """

    keys: dict[str, Any]
    runs: list[RunResult] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.keys.items()) or "all runs"

    @property
    def train_s(self) -> float | None:
        return mean_or_none([run.train_s for run in self.runs], digits=1)

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
        """Return the scores of the finished runs, by default of the optimized metric."""
        name = name or self.optimized.key
        scores = [run.finite_score(name) for run in self.finished()]
        return [score for score in scores if score is not None]

    def trainings(self) -> dict[int, list[RunResult]]:
        """Return the finished runs of each seed: one run, or those of its folds."""
        found: dict[int, list[RunResult]] = {}
        for run in self.finished():
            if run.best_score is not None:
                found.setdefault(run.seed, []).append(run)
        return dict(sorted(found.items()))

    def training_scores(self) -> dict[int, float]:
        """Return the score of each seed, without those that lack folds."""
        found = {seed: runs for seed, runs in self.trainings().items() if len(runs) == (self.num_folds or 1)}
        return {seed: RunGroup(self.keys, runs).mean() or 0.0 for seed, runs in found.items()}

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
        """Number of different validation images of the finished runs: of all folds, or of one run."""
        finished = self.finished() or self.runs
        return sum({run.fold: run.num_val for run in finished}.values())

    def mean(self, name: str | None = None) -> float | None:
        """Return the mean over the runs; of folds the pooled score, in which each validation image counts once per seed."""
        name = name or self.optimized.key
        scores = [(score, run.num_val or 1) for run in self.finished() if (score := run.finite_score(name)) is not None]
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


def differing_keys(runs: Sequence[RunResult]) -> list[str]:
    """Return the config groups and keys whose values differ between runs.

    A config group that differs hides the keys that it sets, except those that also differ between runs with the same option;
    `experiment` and `ablation` hide other groups too.
    """
    configs = [_settings(run) for run in runs]
    recorded = [name for name in runs[0].choices if all(name in run.choices for run in runs)]  # older runs lack some
    groups = [name for name in recorded if name not in IGNORED_GROUPS and len({run.choices[name] for run in runs}) > 1]
    names = dict.fromkeys(name for config in configs for name in config if not _is_ignored(name))
    keys = [name for name in names if name.split(".")[0] not in groups and _differs(name, configs)]
    found = [*groups, *keys, *(key for group in groups for key in _overridden_keys(group, runs, configs))]
    deciding = [name for name in GLOBAL_GROUPS if name in groups]
    if not deciding:
        return found
    options = [tuple(run.choices[name] for name in deciding) for run in runs]
    values = {
        name: [
            run.choices.get(name) if name in groups else config.get(name)
            for run, config in zip(runs, configs, strict=True)
        ]
        for name in found
    }
    return [name for name in found if name in deciding or not _is_decided(values[name], options)]


def _settings(run: RunResult) -> dict[str, Any]:
    """Return the values of a run's config by key, and under `callbacks` the names of the callbacks that affect the result."""
    config = run.record["config"]
    callbacks = config.get("callbacks")
    used = sorted(name for name in callbacks if name not in IGNORED_CALLBACKS) if isinstance(callbacks, dict) else []
    values = flatten(config) | {"callbacks": "+".join(used) or "default"}
    measured = {key: MEASURED for key, value in values.items() if _is_measured(key, value, run.measured)}
    return values | measured


def _is_measured(key: str, value: Any, measured: dict[str, Any]) -> bool:
    """Return whether a value is a statistic that the run has measured; folds and machines differ in it."""
    name = key.rpartition(".")[2]
    return name in measured and value == measured[name] and key.startswith(("data.", "augmentation.train."))


def _is_ignored(name: str) -> bool:
    """Return whether a key does not affect the result, or is the fold."""
    group, _, rest = name.partition(".")
    return (
        name == FOLD
        or name.startswith(IGNORED_KEYS)
        or (group == "callbacks" and rest.partition(".")[0] in IGNORED_CALLBACKS)
    )


def _differs(name: str, configs: Sequence[dict[str, Any]]) -> bool:
    """Return whether the values of a key differ; those of a callback only between runs that have it."""
    values = [config.get(name) for config in configs if name in config or not name.startswith("callbacks.")]
    return len({*map(repr, values)}) > 1


def _is_decided(values: Sequence[Any], options: Sequence[tuple[str, ...]]) -> bool:
    """Return whether each of some options always comes with the same value."""
    return len({(option, repr(value)) for option, value in zip(options, values, strict=True)}) == len({*options})


def _overridden_keys(group: str, runs: Sequence[RunResult], configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys of a config group that differ between runs with the same option."""
    by_option: dict[str, list[dict[str, Any]]] = {}
    for run, config in zip(runs, configs, strict=True):
        by_option.setdefault(run.choices.get(group, ""), []).append(config)
    names = dict.fromkeys(name for config in configs for name in config if name.startswith(f"{group}."))
    return [
        name for name in names if not _is_ignored(name) and any(_differs(name, same) for same in by_option.values())
    ]


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested config by their keys, such as `optimizer.lr`."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for name, inner in node.items():
        flat |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat


def run_keys(runs: Sequence[RunResult], keys: Sequence[str]) -> list[str]:
    """Return the keys in which runs differ besides their seed: those of the groups, and the fold if any run has one."""
    return [*keys, *([FOLD] if any(run.fold is not None for run in runs) else [])]


def key_values(run: RunResult, keys: Sequence[str]) -> dict[str, Any]:
    """Return the run's values of the keys from `differing_keys`."""
    values = _settings(run)
    return {
        key: run.choices[key] if key in run.choices and key not in IGNORED_GROUPS else values.get(key) for key in keys
    }


def has_key(run: RunResult, key: str) -> bool:
    """Return whether a run has a key from `differing_keys`."""
    return key in run.choices or key in _settings(run)


def result_rows(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Return one row per run: the config keys that differ between the runs, the scores, status and folder."""
    keys, names = run_keys(runs, differing_keys(runs)), score_names(runs)
    return [
        {
            **key_values(run, keys),
            "seed": run.seed,
            **{f"val/{name}": run.score(name) for name in names},
            **{name: value for name, value in run.record["scores"].items() if name.startswith("test/")},
            "tags": run.tags,
            "note": run.note,
            "status": run.status,
            "folder": str(run.folder),
        }
        for run in runs
    ]


def score_names(runs: Sequence[RunResult]) -> list[str]:
    """Return the names of the scores of runs: loss, accuracies, and those that a run optimized."""
    return list(dict.fromkeys([*MODES, *(run.optimized.key for run in runs)]))


def group_seeds(runs: Sequence[RunResult], keys: Sequence[str]) -> list[RunGroup]:
    """Return the runs grouped by the values of the keys, so that the runs of a group differ only in seed and fold."""
    groups: dict[str, RunGroup] = {}
    for run in runs:
        values = key_values(run, keys)
        groups.setdefault(repr(values), RunGroup(values)).runs.append(run)
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


def mean_or_none(values: Sequence[float | None], *, digits: int | None = None) -> float | None:
    """Return the mean of the values that are not None, rounded to `digits`; None if all are None."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    return mean if digits is None else round(mean, digits)
