"""Actions `labels` and `relabel` of `python src/prepare.py`: find label errors, and write a corrected manifest."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from alexlab.config.data import data_config
from alexlab.data.audit import label_report, relabel
from alexlab.data.audit.label_errors import check_cleanlab, find_label_errors
from alexlab.data.config import DataConfig
from alexlab.data.splits import Splits
from alexlab.errors import ConfigError
from alexlab.output.command_line import command_line, short_path
from alexlab.output.escape import print_line, shown
from alexlab.output.numbers import counted
from alexlab.output.terminal import Terminal
from alexlab.records.cross_validation import OutOfFold, read_out_of_fold

MANIFEST, PAGE, TABLE, DECISIONS = "manifest.csv", "labels.html", "labels.csv", "decisions.csv"


def find_errors(config: dict[str, Any], run_dir: Path) -> None:
    """Find suspicious labels from the runs of a cross-validation, and write labels.html, labels.csv and manifest.csv.

    The manifest has the labels and splits that the dataset has now.

    Raises:
        AlexlabError: if cleanlab or a fold is missing, or the dataset has changed since the runs.
    """
    if config["ckpt"] is None:
        raise ConfigError("ckpt must be given: ckpt=SWEEP_OF_FOLDS")
    check_cleanlab()
    predictions = read_out_of_fold(str(config["ckpt"]))
    data = _data_of_runs(predictions, config["data"]["root"])
    splits = data.find_undivided_splits()
    _check_images(predictions, splits, skips=data.on_error == "skip")
    root = os.path.abspath(splits.train.root)
    report = label_report.LabelReport(predictions, find_label_errors(predictions.labels, predictions.probs), root)
    for table in label_report.summary_tables(report):
        Terminal().print_table(table)
    relabel.write_corrected(splits, [], run_dir / MANIFEST)
    label_report.write_labels(report, run_dir / TABLE)
    folder = short_path(run_dir)
    apply = "prepare", "action=relabel", f"data.root={folder}/{MANIFEST}"
    correct = command_line(*apply, f"decisions={DECISIONS}", f"out={folder}/corrected.csv")
    commands = [
        correct,
        command_line("train", f"data.root={folder}/corrected.csv"),
        command_line("compare", "OLD_RUN", "NEW_RUN", f"data.root={folder}/corrected.csv", "split=val"),
    ]
    label_report.write_page(report, run_dir / PAGE, decoding=data.decoding, commands=commands)
    print_line(f"{folder}/{PAGE}, {TABLE}, {MANIFEST}")
    print_line(f"decide on the page, then: {correct}")


def apply_decisions(config: dict[str, Any], data: DataConfig, run_dir: Path) -> None:
    """Write the manifest of `data.root` with the decisions of a file.

    Raises:
        AlexlabError: if a decision is invalid.
    """
    if config["decisions"] is None:
        raise ConfigError(
            "decisions must be given: decisions=decisions.csv, or labels.csv with the column decision filled in"
        )
    accept = config["accept"]
    decisions = relabel.read_decisions(Path(config["decisions"]))
    if accept is not None:
        if isinstance(accept, bool) or not isinstance(accept, int | float) or not 0 < accept <= 1:
            raise ConfigError(
                f"accept must be null or a quality above 0 and at most 1, for all: accept=1; got {accept!r}"
            )
        decisions = relabel.accept_below(decisions, accept)
    out = Path(config["out"] or run_dir / "corrected.csv")
    if out.exists():
        raise ConfigError(f"out must be a new file; {shown(out)} exists")
    splits = data.find_splits()
    if config["train_only"]:
        decisions = relabel.in_train(decisions, splits)
    relabel.write_corrected(splits, decisions, out)
    counts = {name: sum(row.decision == name for row in decisions) for name in (*relabel.DECISIONS, "")}
    print_line(
        f"corrected {counted(counts['accept'], 'label')}, removed {counted(counts['remove'], 'image')}, rejected "
        f"{counted(counts['reject'], 'proposal')}, {counts['']:,} undecided: {short_path(out)}"
    )
    print_line(command_line("train", f"data.root={short_path(out)}"))


def _data_of_runs(predictions: OutOfFold, root: str | None) -> DataConfig:
    """Return the data settings of the runs, with another root if it is given."""
    node = predictions.data
    if node.get("dataset") is not None or not node["root"]:
        raise ConfigError("action=labels needs runs on a folder of image files or a manifest; these used data.dataset")
    return data_config({"data": {**node, "root": root or node["root"]}})


def _check_images(predictions: OutOfFold, splits: Splits, *, skips: bool) -> None:
    """Check that the dataset has exactly the images that were predicted, with the same labels."""
    now = {
        path: split.classes[label]
        for name, split in splits.items()
        if name != "test"
        for path, label in zip(split.paths, split.labels.tolist(), strict=True)
    }
    then = dict(zip(predictions.paths, np.array(predictions.classes)[predictions.labels].tolist(), strict=True))
    where, given = shown(splits.train.root), "set data.root=DIR if the dataset was moved"
    gone = [path for path in then if path not in now]
    if gone:
        raise ConfigError(
            f"{where} must have the images of the runs; it lacks {len(gone):,}, such as {shown(gone[0])}: {given}"
        )
    added = [path for path in now if path not in then]
    if added and not skips:
        raise ConfigError(
            f"each train and val image of {where} must be predicted in one fold; {len(added):,} were not, such as "
            f"{shown(added[0])}"
        )
    changed = next((path for path in then if then[path] != now[path]), None)
    if changed is not None:
        raise ConfigError(
            f"the labels must be those that the runs were trained with; {shown(changed)} was {then[changed]} "
            f"and is {now[changed]}"
        )
