"""Settings of runs: the config groups and keys in which runs differ, and their values."""

from collections.abc import Sequence
from typing import Any

from alexlab.records.optimized import MODES
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
    return len({*map(value_id, values)}) > 1


def value_id(value: Any) -> str:
    """Return a text that is the same for equal values: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(value, list):
        return f"[{','.join(map(value_id, value))}]"
    return repr(float(value)) if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def _is_decided(values: Sequence[Any], options: Sequence[tuple[str, ...]]) -> bool:
    """Return whether each of some options always comes with the same value."""
    return len({(option, value_id(value)) for option, value in zip(options, values, strict=True)}) == len({*options})


def _overridden_keys(group: str, runs: Sequence[RunResult], configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys of a config group that differ between runs with the same option."""
    by_option: dict[str, list[dict[str, Any]]] = {}
    for run, config in zip(runs, configs, strict=True):
        by_option.setdefault(run.choices.get(group, ""), []).append(config)
    names = dict.fromkeys(name for config in configs for name in config if name.startswith(f"{group}."))
    return [
        name for name in names if not _is_ignored(name) and any(_differs(name, same) for same in by_option.values())
    ]


def changed_values(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ between two configs, with both values, except keys that do not affect the result.

    Keys that only one of them has are left out, as the configs of older runs lack some, and so are values that are null now,
    which a run may have measured.
    """
    old, new = flatten(before), flatten(now)
    return {
        name: (old[name], value)
        for name, value in new.items()
        if name in old and value is not None and old[name] != value and not _is_ignored(name)
    }


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
