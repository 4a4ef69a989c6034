"""Table of the out-of-fold predictions of a cross-validation: each image, predicted by the run that did not train on it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alexlab.output.csv_files import write_csv
from alexlab.records.image_scores import saved_predictions
from alexlab.records.run_groups import RunGroup
from alexlab.records.settings import FOLD

OUT_OF_FOLD = "out_of_fold.csv"
COLUMNS = ("seed", FOLD, "path", "label", "predicted", "label_prob")


def write_out_of_fold(groups: Sequence[RunGroup], keys: Sequence[str], out_dir: Path) -> None:
    """Write one row per image and seed of each setting that has folds; nothing without folds.

    Args:
        groups: the settings.
        keys: config keys that differ between them, which are the first columns.
        out_dir: folder of the file.
    """
    folds = [group for group in groups if group.num_folds is not None]
    if folds:
        write_csv(out_dir / OUT_OF_FOLD, [[*keys, *COLUMNS], *_rows(folds, keys)])


def _rows(groups: Sequence[RunGroup], keys: Sequence[str]) -> Iterator[list[Any]]:
    for group in groups:
        setting = [str(group.keys[key]) for key in keys]
        for run in (run for runs in group.trainings().values() for run in runs):
            kept = saved_predictions(run)
            if kept is None:
                continue
            labels, predicted = kept.classes[kept.labels].tolist(), kept.classes[kept.predicted].tolist()
            probs = kept.label_prob.round(6).astype(str).tolist()
            for columns in zip(kept.paths.tolist(), labels, predicted, probs, strict=True):
                yield [*setting, run.seed, run.fold, *columns]
