"""Out-of-fold predictions: each image as predicted by the nets of a cross-validation that did not train on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexlab.errors import ConfigError
from alexlab.records.find import find_runs
from alexlab.records.record import FINISHED
from alexlab.records.results import RunResult, read_run
from alexlab.records.saved_predictions import SavedPredictions, read_predictions
from alexlab.records.settings import differing_keys

# Keys of the data node that decide which images there are and in which fold.
SAME_KEYS = ("root", "folds", "split_seed", "group", "val_split", "val_fraction", "test_fraction", "splits", "dataset")


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions on the N training and validation images of K classes.

    Args:
        paths: paths of the images, relative to `data.root`.
        classes: names of the classes.
        labels: int64 (N,).
        probs: float64 (N, K), rows sum to 1; the mean over the runs of the image's fold.
        runs: finished runs.
    """

    paths: Sequence[str]
    classes: Sequence[str]
    labels: np.ndarray
    probs: np.ndarray
    runs: Sequence[RunResult]

    @property
    def data(self) -> dict[str, Any]:
        """The data node of the runs' config."""
        return dict(self.runs[0].record["config"]["data"])

    @property
    def accuracy(self) -> float:
        """Fraction of the images whose most probable class is the label."""
        return float((self.probs.argmax(1) == self.labels).mean())


def read_out_of_fold(folder: str) -> OutOfFold:
    """Return the out-of-fold predictions of the runs in a folder: one run of each fold, or several with other seeds.

    Args:
        folder: folder of the runs, or a glob of their folders.

    Raises:
        ConfigError: if they are not the finished runs of a cross-validation that predicted each image in one fold.
    """
    runs = [read_run(path, with_epochs=False) for path in find_runs([folder])]
    finished = [run for run in runs if run.status == FINISHED]
    _check_folds(folder, runs, finished)
    by_fold: dict[int, list[tuple[RunResult, SavedPredictions]]] = {}
    for run in finished:
        by_fold.setdefault(int(run.fold or 0), []).append((run, _predictions(run)))
    classes = [str(name) for name in by_fold[0][0][1].classes]
    if any([str(name) for name in entries[0][1].classes] != classes for entries in by_fold.values()):
        raise ConfigError(f"the folds of a cross-validation must have the same classes; those in {folder} differ")
    parts = [_average(entries) for _, entries in sorted(by_fold.items())]
    paths = [path for part_paths, _, _ in parts for path in part_paths]
    if len({*paths}) < len(paths):
        repeated = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f"each image must be in one fold; {repeated} is in several of {folder}")
    labels, probs = (np.concatenate([part[column] for part in parts]) for column in (1, 2))
    return OutOfFold(paths, classes, labels, probs, finished)


def _check_folds(folder: str, runs: Sequence[RunResult], finished: Sequence[RunResult]) -> None:
    """Check that the runs are those of one cross-validation and that each fold has a finished one."""
    other = next((run for run in runs if run.num_folds is None or run.fold is None), None)
    if other is not None:
        raise ConfigError(
            f"ckpt must be the folder of a cross-validation (-m 'data.fold=range(5)' data.folds=5); "
            f"the run {other.folder} has no folds"
        )
    first = runs[0].record["config"]["data"]
    for run in runs:
        node = run.record["config"]["data"]
        changed = next((key for key in SAME_KEYS if node.get(key) != first.get(key)), None)
        if changed is not None:
            raise ConfigError(
                f"the runs of a cross-validation must have the same data.{changed}; "
                f"{runs[0].folder} has {first.get(changed)!r}, {run.folder} has {node.get(changed)!r}"
            )
    keys = differing_keys(finished) if finished else []
    if keys:
        raise ConfigError(
            f"the runs of a cross-validation must differ only in fold and seed; those of {folder} differ in {', '.join(keys)}: "
            f"name the runs of one setting by their folders, such as ckpt='{runs[0].folder.parent}/*model-alexnet*'"
        )
    missing = sorted({*range(runs[0].num_folds or 0)} - {run.fold for run in finished if run.fold is not None})
    if missing:
        unfinished = [f"{run.folder.name} is {run.status}" for run in runs if run.fold in missing]
        raise ConfigError(
            f"each of the {runs[0].num_folds} folds must have a finished run; {folder} has none of fold "
            f"{', '.join(map(str, missing))}{''.join(f' ({text})' for text in unfinished[:1])}"
        )


def _predictions(run: RunResult) -> SavedPredictions:
    kept = read_predictions(run.folder, "val")
    if kept is None:
        raise ConfigError(f"the run {run.folder} kept no predictions of its validation images; train it again")
    if kept.probs is None:
        raise ConfigError(
            f"the run {run.folder} kept only the top 5 of {len(kept.classes):,} classes of {len(kept):,} images, which is "
            "not enough to find label errors"
        )
    return kept


def _average(entries: Sequence[tuple[RunResult, SavedPredictions]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return paths, labels and mean probabilities of the runs of one fold."""
    first_run, first = entries[0]
    order = np.argsort(first.paths)
    total, paths = np.zeros((len(first), len(first.classes))), first.paths[order]
    for run, kept in entries:
        rows = np.argsort(kept.paths)
        if not (np.array_equal(kept.paths[rows], paths) and np.array_equal(kept.classes, first.classes)):
            raise ConfigError(
                f"runs of the same fold must validate on the same images; {first_run.folder} and {run.folder} do not"
            )
        assert kept.probs is not None
        if not np.isfinite(kept.probs).all():
            raise ConfigError(f"the run {run.folder} predicted probabilities that are not finite; train it again")
        total += kept.probs[rows].astype(np.float64)
    return [str(path) for path in paths], first.labels[order], total / total.sum(1, keepdims=True)
