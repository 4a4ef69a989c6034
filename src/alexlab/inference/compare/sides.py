"""The two things that `compare.py` compares: runs, sweeps, checkpoints or exported .safetensors files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alexlab.errors import ConfigError
from alexlab.records.find import find_runs, last_run
from alexlab.records.layout import BEST, LAST, RUN_JSON
from alexlab.records.record import FINISHED
from alexlab.records.results import RunResult, obstacle, read_run, read_runs
from alexlab.records.run_groups import group_seeds
from alexlab.records.saved_predictions import SavedPredictions, read_predictions
from alexlab.records.settings import differing_keys

KINDS = "a run folder, the folder of a sweep, a checkpoint or an exported .safetensors file"


@dataclass(frozen=True)
class Member:
    """One trained net.

    Args:
        path: run folder or file.
        run: the run that trained it; None if it is not in a run folder.
    """

    path: Path
    run: RunResult | None

    def kept(self, split: str) -> SavedPredictions | None:
        """Return the predictions that its run has kept of a split; None if there are none of this checkpoint."""
        if self.run is None or self.run.status != FINISHED or self.path.name == LAST.name:
            return None
        if self.path.is_file() and self.path.name != BEST.name:
            return None
        return read_predictions(self.run.folder, split)


@dataclass(frozen=True)
class Side:
    """A net, or several whose probabilities are averaged.

    Args:
        name: as typed.
        members: the nets.
        note: sentence about how they were chosen; empty if there is nothing to choose.
    """

    name: str
    members: Sequence[Member]
    note: str = ""

    @property
    def title(self) -> str:
        """Name of the folder of the run or sweep, or of the file."""
        single = self.run if len(self.members) == 1 else None
        return Path(self.name).resolve().name if single is None else single.folder.resolve().name

    @property
    def run(self) -> RunResult | None:
        """The run of the first net."""
        return self.members[0].run

    def parts(self, split: str | None) -> list[Sequence[Member]]:
        """Return the nets that predict the same images: all, or those of each fold on a validation split."""
        folds: dict[int | None, list[Member]] = {}
        for member in self.members:
            fold = member.run.fold if member.run is not None and split == "val" else None
            folds.setdefault(fold, []).append(member)
        return list(folds.values())


def find_side(name: str) -> Side:
    """Return the side that a command-line argument names.

    Args:
        name: a run folder, the folder of a sweep, of whose best setting all seeds and folds are taken, a checkpoint, an
            exported file, or `last`.

    Raises:
        ConfigError: if it is something else, or no run of a sweep has finished.
    """
    path = Path(name)
    if name == "last" and not path.exists():
        path = last_run("last", [BEST, LAST])
        name = str(path)
    if not path.exists():
        raise ConfigError(f"A and B must each be {KINDS}; {name} does not exist")
    folder = path if path.is_dir() else path.parent.parent
    if (folder / RUN_JSON).is_file() and (path.is_dir() or path.parent.name == BEST.parent.name):
        return Side(name, [Member(path, read_run(folder, with_epochs=False))])
    if path.is_file() or any((path / file).is_file() for file in (BEST, LAST)):
        return Side(name, [Member(path, None)])
    return _best_setting(name, read_runs(find_runs([name])))


def _best_setting(name: str, runs: Sequence[RunResult]) -> Side:
    """Return the finished runs of the setting with the best mean of the optimized metric."""
    finished = [run for run in runs if run.status == FINISHED and run.finite_score(run.optimized.key) is not None]
    if not finished:
        raise ConfigError(f"A and B must have finished runs; no finished run in {name} has scores")
    if reason := obstacle(finished):
        raise ConfigError(f"the runs in {name} have {reason}; name one of them")
    groups = group_seeds(finished, differing_keys(finished))
    complete = [group for group in groups if not group.missing_folds] or groups
    best = max(complete, key=lambda group: group.optimized.rank(group.mean(), group.mean("loss")))
    note = ""
    if len(groups) > 1:
        note = f"{best.name} is the best of {len(groups)} settings in {name}, so its validation score is optimistically biased. "
    counted = best.counted()
    if best.num_folds is not None:
        note += (
            f"Each image is predicted by those of the {len(counted)} runs (folds and seeds) that did not train on it. "
        )
    elif len(counted) > 1:
        note += f"The probabilities of {len(counted)} seeds are averaged, which usually raises the accuracy. "
    return Side(name, [Member(run.folder, run) for run in counted], note.strip())


def average(kept: Sequence[SavedPredictions]) -> SavedPredictions:
    """Return the mean of the probabilities of several nets on the images that all of them have.

    Args:
        kept: predictions with the probabilities of all classes.

    Raises:
        ConfigError: if they have different classes or labels.
    """
    first, *others = kept
    if not others:
        return first
    rows = [{path: row for row, path in enumerate(each.paths.tolist())} for each in kept]
    common = [path for path in first.paths.tolist() if all(path in each for each in rows)]
    taken = [take(each, np.array([of[path] for path in common], np.int64)) for each, of in zip(kept, rows, strict=True)]
    for each in taken[1:]:
        if each.classes.tolist() != first.classes.tolist() or (each.labels != taken[0].labels).any():
            raise ConfigError("the runs of a sweep must have the same classes and labels to be averaged")
    label_prob: np.ndarray = np.stack([each.label_prob for each in taken]).mean(
        0, dtype=np.float32
    )  # `probs` is rounded
    stacked = np.stack([each.probs for each in taken if each.probs is not None])
    probs: np.ndarray = stacked.mean(0, dtype=np.float32)
    top = np.argsort(-probs, axis=1, kind="stable")[:, :5]
    return replace(
        taken[0],
        top_classes=top,
        top_probs=np.take_along_axis(probs, top, 1),
        label_prob=label_prob,
        probs=probs,
    )


def take(kept: SavedPredictions, rows: np.ndarray) -> SavedPredictions:
    """Return the predictions on some images."""
    names = ("paths", "labels", "top_classes", "top_probs", "label_prob")
    arrays: dict[str, Any] = {name: getattr(kept, name)[rows] for name in names}
    return replace(kept, **arrays, probs=None if kept.probs is None else kept.probs[rows])


def concatenate(parts: Sequence[SavedPredictions]) -> SavedPredictions:
    """Return the predictions on the different images of several folds as one."""
    first = parts[0]
    if any(part.classes.tolist() != first.classes.tolist() for part in parts):
        raise ConfigError("the folds of a cross-validation must have the same classes")
    names = ("paths", "labels", "top_classes", "top_probs", "label_prob")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(first, **arrays, probs=None)
