"""Task of `python src/evaluate.py`: metrics of a trained network on labelled images."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexlab.distributed.imports import import_lightning
from alexlab.errors import ConfigError
from alexlab.output.command_line import short_path
from alexlab.output.escape import print_line
from alexlab.output.numbers import counted
from alexlab.records.run import Run
from alexlab.tasks.counts import check_counts

if TYPE_CHECKING:
    from alexlab.inference.checkpoint import TrainedModel
    from alexlab.inference.predictions import Predictions
    from alexlab.inference.report import Evaluation
    from alexlab.pages.image_grid import ImageGrid


def main(run: Run) -> float:
    """Evaluate every image of a split once, print tables, write files and `evaluation.html`, and return the top-1 accuracy.

    Raises:
        AlexlabError: if the checkpoint, the data or an option is invalid.
    """
    import_lightning()

    from alexlab.inference.mistakes import mistake_grid
    from alexlab.inference.report import summary_tables, write_evaluation, write_page
    from alexlab.output.terminal import Terminal
    from alexlab.pages.plots import png
    from alexlab.records.layout import SKIPPED

    check_counts(run.config, {"num_mistakes": 0})
    model = load_model(run.config)
    evaluation = evaluate(model, run.config, skipped=run.dir / SKIPPED)
    write_evaluation(evaluation, run.dir)
    for table in summary_tables(evaluation):
        Terminal().print_table(table)
    chosen = show_chosen(model, evaluation.predictions, run.config["show"])
    for name, grid in chosen.items():
        (run.dir / f"{name}.png").write_bytes(png(grid.figure()))
    mistakes = mistake_grid(model, evaluation.predictions, run.config["num_mistakes"])
    grids = [*chosen.values(), *mistakes]
    write_page(evaluation, run.dir / "evaluation.html", title(model, evaluation), grids=grids)
    folder = short_path(run.dir)
    if num_unreadable := len(evaluation.predictions.split) - len(evaluation.predictions.labels):
        print_line(f"{counted(num_unreadable, 'image')} could not be read: {Path(folder) / SKIPPED}")
    names = ["scores.json", "classes.csv", "confusion.csv", "predictions.csv", *(f"{name}.png" for name in chosen)]
    print_line(f"{folder}/evaluation.html, {', '.join(names)}")
    return evaluation.top1


def show_chosen(model: "TrainedModel", predictions: "Predictions", show: Any) -> "dict[str, ImageGrid]":
    """Print the labels and predictions of the images that `show` asks for, and return the images by file name."""
    from alexlab.inference.chosen_images import choose_images, chosen_grid, chosen_table
    from alexlab.output.terminal import Terminal

    rows = choose_images(predictions, show)
    if rows:
        Terminal().print_table(chosen_table(model, predictions, rows))
    return chosen_grid(model, predictions, rows)


def load_model(config: dict[str, Any]) -> "TrainedModel":
    """Return the model of the checkpoints that a config names."""
    from alexlab.inference.checkpoint import load_checkpoint

    model = load_checkpoint(
        config["ckpt"], weights=config["weights"], class_names=config["class_names"], device=config["device"]
    )
    return model.with_decoding(config.get("data", {}))


def title(model: "TrainedModel", evaluation: "Evaluation") -> str:
    """Return the title of an evaluation's page: model, data and split."""
    data, split = evaluation.details["data"], evaluation.details["split"]
    images = "all images" if split == "all" else f"{split} split"
    return f"{model.description} on {Path(data).name or data}: {images}"


def evaluate(model: "TrainedModel", config: dict[str, Any], *, skipped: Path) -> "Evaluation":
    """Evaluate a model on the split that a config selects.

    Args:
        model: trained model.
        config: plain data: `split` and `views` as in `evaluate.yaml`, and `data`, whose values replace those of the run.
        skipped: list of unreadable images, written if the data settings skip them.
    """
    from alexlab.inference.held_out import held_out_split
    from alexlab.inference.members import Member
    from alexlab.inference.predictions import predict_split
    from alexlab.inference.report import Evaluation

    settings, from_run = data_settings(model, config["data"])
    name, split = held_out_split(model, settings, config["split"], from_run=from_run)
    label = f"{name}: {len(split):,} images"
    predictions, *others = predict_split(model, split, settings, views=config["views"], title=label, skipped=skipped)
    members = [
        Member(member.label, member.weight, found)
        for member, found in zip(model.members, others if model.members else [], strict=True)
    ]
    checkpoint = model.label if model.path is not None else f"{len(members)} checkpoints"
    details = {"checkpoint": checkpoint, "data": settings.location, "split": name, "views": config["views"]}
    return Evaluation(predictions, model.names, details, members)


def data_settings(model: "TrainedModel", node: dict[str, Any]) -> tuple[Any, bool]:
    """Return the data settings of the model's run with the values of a `data` node that are not null.

    Returns:
        The settings, and whether they still refer to the data of the run, which may have been moved or copied.
    """
    from alexlab.inference.checkpoint import NO_SOURCE
    from alexlab.inference.held_out import has_data_of

    changes = {key: value for key, value in node.items() if value is not None}
    if not any(changes.get("splits", {}).values()):
        changes.pop("splits", None)
    if changes.get("root") and os.path.realpath(changes["root"]) == os.path.realpath(str(model.config["data"]["root"])):
        del changes["root"]  # keep the run's own splits, so that no training image is evaluated
    if not changes.keys() & {"root", "url"}:
        return model.data_settings(**changes), True
    # Shards may replace a folder; the keys that divide or sample files do not apply to them.
    of_files = {} if changes.get("url") is None else {"sampler": "shuffle", "group": None}
    changes = NO_SOURCE | of_files | changes
    if has_data_of((model.members or (model,))[0], changes["root"]):
        return model.data_settings(**changes), True
    changes = {"splits": {}, "folds": None, "fold": None, "fraction": 1.0, "val_split": "val", **changes}
    if _has_val(changes):  # nothing is left to divide
        changes |= {"group": None, "test_fraction": 0.0}
    return model.data_settings(**changes), False


def _has_val(changes: dict[str, Any]) -> bool:
    """Return whether the dataset of some data settings has a validation split of its own."""
    from alexlab.data.layout import find_layout

    root = changes["root"]
    return root is None or not os.path.isdir(root) or "val" in find_layout(root, changes["splits"]).folders


def check(config: dict[str, Any]) -> None:
    """Check what can be checked before the checkpoint is loaded.

    Raises:
        ConfigError: if the checkpoint does not exist.
    """
    for name in config["ckpt"] if isinstance(config["ckpt"], list) else [config["ckpt"]]:
        if not Path(str(name)).exists():
            hint = f"; several need brackets: ckpt=[{name}]" if "," in str(name) else ""
            raise ConfigError(f"ckpt must be a run folder or a file; {name} does not exist{hint}")
