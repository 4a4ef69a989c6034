"""Sources of the predictions of both sides: kept by their runs, or computed by evaluating checkpoints."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexlab.data.image_file import Decoding
from alexlab.data.layout import HELD_OUT
from alexlab.data.splits import Split
from alexlab.errors import ConfigError
from alexlab.inference.compare.sides import Member, average
from alexlab.records.record import FINISHED, check_record
from alexlab.records.results import RunResult
from alexlab.records.saved_predictions import SavedPredictions

if TYPE_CHECKING:
    from alexlab.inference.checkpoint import TrainedModel
    from alexlab.inference.predictions import Predictions

NOT_CONTENT = ("batch_size", "num_workers", "on_error")  # keys of `data` that do not change the predictions


@dataclass(frozen=True)
class Kept:
    """Predictions that runs have kept."""

    predictions: SavedPredictions
    split_name: str

    @property
    def paths(self) -> Sequence[str]:
        paths: list[str] = self.predictions.paths.tolist()
        return paths

    def predict(self, common: Collection[str]) -> SavedPredictions:
        """Return the predictions; `common` are the images that are needed."""
        return self.predictions


@dataclass(frozen=True)
class Evaluated:
    """A checkpoint to evaluate on a split.

    Args:
        split: the images.
        split_name: name of the split.
        decoding: decoding settings of its images.
        run: function that predicts the images of a part of the split.
        trained: the runs that trained its nets, as their files record them; fewer if a file records none.
    """

    split: Split
    split_name: str
    decoding: Decoding
    run: Callable[[Split], SavedPredictions]
    trained: Sequence[RunResult] = ()

    @property
    def paths(self) -> Sequence[str]:
        return self.split.paths

    def predict(self, common: Collection[str]) -> SavedPredictions:
        """Return the predictions of those images of the split that are in `common`."""
        rows = [row for row, path in enumerate(self.split.paths) if path in common]
        return self.run(self.split.take(np.array(rows, np.int64)))


def recorded_runs(model: "TrainedModel") -> list[RunResult]:
    """Return the runs that trained the nets of a model, as its files record them; without those of plain state dicts.

    Raises:
        ConfigError: if a record is corrupt.
    """
    found = []
    for net in model.members or (model,):
        path = net.path or Path()
        if net.recorded is not None:
            entries = {"status": FINISHED, "seed": net.recorded["config"].get("seed"), **net.recorded}
            found.append(RunResult(path, check_record(entries, path), []))
    return found


def kept_source(members: Sequence[Member], split: str, config: dict[str, Any]) -> Kept | None:
    """Return the predictions that the runs of some nets have kept; None if any of them must be evaluated.

    Args:
        members: nets whose probabilities are averaged.
        split: val or test.
        config: config of the command: other images or views need an evaluation.
    """
    changes = [name for name, value in config["data"].items() if value is not None and name not in NOT_CONTENT]
    if changes or config["views"] != "center" or split not in HELD_OUT:
        return None
    found = [member.kept(split) for member in members]
    kept = [each for each in found if each is not None and (len(found) == 1 or each.probs is not None)]
    return Kept(average(kept), split) if len(kept) == len(found) else None


def recorded_split(members: Sequence[Member]) -> str | None:
    """Return the split to compare on: test if all runs have one, else val; None if no run is recorded."""
    counts = [member.run.record["data"].get("counts", {}) for member in members if member.run is not None]
    if not counts:
        return None
    return "test" if all(each.get("test") for each in counts) else "val"


def check_split(split: str | None, *, from_run: bool) -> None:
    """Raise ConfigError if a net may have been trained on the images of a split.

    Args:
        split: name of the split; None for the default.
        from_run: whether the images are those of a run.
    """
    if from_run and split is not None and split not in HELD_OUT:
        raise ConfigError(
            f"split must be val or test, because images that a net was trained on do not show which is better; got {split!r}"
        )


def to_kept(found: "Predictions") -> SavedPredictions:
    """Return the predictions of an evaluation in the form in which runs keep them."""
    return SavedPredictions(
        paths=np.array([found.split.paths[index] for index in found.indices.tolist()], dtype=np.str_),
        classes=np.array(found.split.classes, dtype=np.str_),
        labels=found.labels,
        top_classes=found.top_classes,
        top_probs=found.top_probs,
        label_prob=found.label_prob,
    )
