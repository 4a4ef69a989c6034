"""Task of `python src/evaluate.py`: metrics of a trained network on labelled images."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alexlab.distributed.imports import import_lightning
from alexlab.errors import ConfigError
from alexlab.output.escape import print_line
from alexlab.runs.run import Run

if TYPE_CHECKING:
    from alexlab.inference.checkpoint import TrainedModel
    from alexlab.inference.predictions import Predictions


class EvaluatedSplit(NamedTuple):
    """A trained model and its predictions on a split.

    Args:
        model: the model.
        predictions: its predictions.
        details: description of the evaluation, plain data: checkpoint, data, split, views.
        num_unreadable: number of images that were left out because they cannot be read.
    """

    model: "TrainedModel"
    predictions: "Predictions"
    details: dict[str, Any]
    num_unreadable: int

    @property
    def title(self) -> str:
        return f"{self.model.description}: {self.details['split']}"


def main(run: Run) -> float:
    """Evaluate every image of a split once, print tables, write files and `evaluation.html`, and return the top-1 accuracy.

    Raises:
        AlexlabError: if the checkpoint, the data or an option is invalid.
    """
    import_lightning()

    from alexlab.inference.report import summary_tables, write_evaluation, write_page
    from alexlab.output.terminal import Terminal
    from alexlab.runs.layout import SKIPPED

    evaluated = evaluate_split(run.config, run.dir)
    evaluation = write_evaluation(evaluated.predictions, evaluated.model.names, run.dir, evaluated.details)
    for table in summary_tables(evaluation):
        Terminal().print(table)
    write_page(evaluation, run.dir / "evaluation.html", evaluated.title)
    folder = os.path.relpath(run.dir)
    if evaluated.num_unreadable:
        print_line(f"{evaluated.num_unreadable} images could not be read and were left out: {Path(folder) / SKIPPED}")
    print_line(f"{folder}/evaluation.html, scores.json, classes.csv, confusion.csv, predictions.csv")
    return float(evaluation.metrics["top1"])


def evaluate_split(config: dict[str, Any], run_dir: Path) -> EvaluatedSplit:
    """Return the predictions of the checkpoint on the split that the config selects.

    Args:
        config: config of `evaluate.py` or `explain.py`.
        run_dir: folder of the list of unreadable images.
    """
    from alexlab.config import build
    from alexlab.data.unreadable import UnreadableLog
    from alexlab.inference.checkpoint import load_checkpoint
    from alexlab.inference.predictions import predict_split, select_split, split_loader
    from alexlab.output.progress import track
    from alexlab.runs.layout import SKIPPED

    model = load_checkpoint(config["ckpt"], class_names=config["class_names"], device=config["device"])
    model = model.with_decoding(config["data"])
    settings, from_run = data_settings(model, config["data"])
    name, split = select_split(model, settings, config["split"], from_run=from_run)
    unreadable = UnreadableLog(run_dir / SKIPPED) if settings.on_error == "skip" else None
    loader = split_loader(split, build.eval_view(model.config, config["views"]), settings, unreadable=unreadable)
    title = f"{name}: {len(split):,} images"
    predictions = predict_split(model.inference, loader, split, progress=lambda batches: track(batches, title))
    details = {"checkpoint": str(model.path), "data": settings.location, "split": name, "views": config["views"]}
    return EvaluatedSplit(model, predictions, details, unreadable.finish() if unreadable else 0)


def data_settings(model: "TrainedModel", node: dict[str, Any]) -> tuple[Any, bool]:
    """Return the data settings of the model's run with the values of a `data` node that are not null.

    Returns:
        The settings, and whether they still refer to the data of the run.
    """
    from alexlab.data.config import DataConfig

    changes = {key: value for key, value in node.items() if value is not None}
    if not any(changes["splits"].values()):
        del changes["splits"]
    from_run = not changes.keys() & {"root", "url"}
    if not from_run:  # a folder may replace shards and shards a folder
        changes = {"root": None, "url": None, "generate": None, "splits": {}} | changes
    return DataConfig(**{**model.config["data"], "cache": None, "manifest": None, **changes}), from_run


def check(config: dict[str, Any]) -> None:
    """Check what can be checked before the checkpoint is loaded.

    Raises:
        ConfigError: if the checkpoint does not exist.
    """
    if not Path(config["ckpt"]).exists():
        raise ConfigError(f"ckpt must be a run folder or a file; {config['ckpt']} does not exist")
