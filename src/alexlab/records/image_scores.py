"""Score of each validation image under each training of a setting, from saved predictions."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alexlab.errors import ConfigError
from alexlab.records.results import RunResult
from alexlab.records.run_groups import RunGroup
from alexlab.records.saved_predictions import SavedPredictions, read_predictions
from alexlab.records.significance import ImageScores

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SettingScores:
    """Images that every training of a setting was validated on, sorted by path, and their scores.

    Args:
        paths: str (N,).
        labels: names of the classes, str (N,).
        scores: of the optimized metric; None if it is not a mean over images.
    """

    paths: np.ndarray
    labels: np.ndarray
    scores: ImageScores | None

    def has_images_of(self, other: "SettingScores") -> bool:
        """Return whether both settings were validated on the same images with the same labels."""
        return np.array_equal(self.paths, other.paths) and np.array_equal(self.labels, other.labels)


def setting_scores(group: RunGroup) -> SettingScores | None:
    """Return the scores of the images of a setting; None if they are not finite, or not of the same images in each training."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
    trainings = group.trainings()
    for runs in trainings.values():
        kept = [predictions for run in runs if (predictions := saved_predictions(run)) is not None]
        if len(kept) < len(runs):
            return None
        found.append(_merge(kept, group.optimized.key))
    paths, labels, first = found[0]
    if (paths[:-1] == paths[1:]).any():  # an image in two folds
        return None
    if not all(np.array_equal(paths, each[0]) and np.array_equal(labels, each[1]) for each in found[1:]):
        return None
    if first is None:
        return SettingScores(paths, labels, None)
    values = np.array([each[2] for each in found], np.float64)
    if not np.isfinite(values).all():
        return None
    return SettingScores(paths, labels, ImageScores(tuple(trainings), values, group.optimized.is_accuracy))


def saved_predictions(run: RunResult) -> SavedPredictions | None:
    """Return the predictions of a run on its validation images, without those of all classes; None if it has none."""
    try:
        return read_predictions(run.folder, "val", all_classes=False)
    except ConfigError as error:
        log.warning("%s", error)
        return None


def _merge(kept: Sequence[SavedPredictions], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return paths, names of labels and scores of all images of some predictions, sorted by path."""
    paths = np.concatenate([each.paths for each in kept])
    labels = np.concatenate([each.classes[each.labels] for each in kept])
    scores = [score for each in kept if (score := _scores(each, metric)) is not None]
    values = np.concatenate(scores) if scores else None
    if (paths[:-1] <= paths[1:]).all():  # as image folders are; sorting a million paths takes seconds
        return paths, labels, values
    order = paths.argsort(kind="stable")
    return paths[order], labels[order], None if values is None else values[order]


def _scores(kept: SavedPredictions, metric: str) -> np.ndarray | None:
    """Return the score of each image, (N,); None for a metric that is not a mean over images."""
    if metric == "top1":
        return kept.correct
    if metric == "top5":
        return np.asarray((kept.top_classes == kept.labels[:, None]).any(1))
    if metric == "loss":
        return np.asarray(-np.log(np.maximum(kept.label_prob, np.finfo(np.float32).tiny)))
    return None
