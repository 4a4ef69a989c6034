"""Task of `python src/explain.py`: visual explanations of a trained network."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexlab.distributed.imports import import_lightning
from alexlab.errors import ConfigError, DataError
from alexlab.output.command_line import short_path
from alexlab.output.escape import print_line
from alexlab.output.numbers import counted
from alexlab.records.run import Run
from alexlab.tasks import evaluate
from alexlab.tasks.counts import check_counts

if TYPE_CHECKING:
    from torch import Tensor

    from alexlab.inference.checkpoint import TrainedModel
    from alexlab.inference.explain.sections import Grids, View
    from alexlab.inference.predictions import Predictions

log = logging.getLogger(__name__)


def main(run: Run) -> None:
    """Evaluate, then write mistakes, kernels, neighbours, feature maps and Grad-CAM as PNG files and `explain.html`.

    Raises:
        AlexlabError: if the checkpoint, the data or an option is invalid.
    """
    import_lightning()

    from alexlab.config import build_data
    from alexlab.inference.explain import sections
    from alexlab.inference.report import write_evaluation, write_page
    from alexlab.pages.plots import png
    from alexlab.records.layout import SKIPPED

    config = run.config
    _check_options(config)
    model = evaluate.load_model(config)
    model.single  # noqa: B018 - raises for an ensemble
    if config["tensorboard"] and model.run_dir is None:
        raise ConfigError(f"tensorboard=true needs the run folder of the checkpoint; {model.path} is not in one")
    evaluation = evaluate.evaluate(model, config, skipped=run.dir / SKIPPED)
    predictions = evaluation.predictions
    write_evaluation(evaluation, run.dir)
    view = build_data.eval_view(model.config)
    image, name = _image(config, model, predictions, view)
    grids = {
        **evaluate.show_chosen(model, predictions, config["show"]),
        **sections.mistake_grids(model, predictions, view, config["num_mistakes"]),
        **sections.image_grids(model, image, name),
        **sections.filter_grids(model),
        **_neighbour_grids(config, model, predictions, view),
    }
    for name, grid in grids.items():
        (run.dir / f"{name}.png").write_bytes(png(grid.figure()))
    write_page(
        evaluation,
        run.dir / "explain.html",
        evaluate.title(model, evaluation),
        kind="Explanation",
        grids=list(grids.values()),
    )
    if config["tensorboard"]:
        _write_to_tensorboard(model, run.dir)
    print_line(f"misclassified: {int((~predictions.correct).sum()):,} of {counted(len(predictions.labels), 'image')}")
    print_line(f"{short_path(run.dir)}/explain.html, {', '.join(f'{name}.png' for name in grids)}")


check = evaluate.check


def _check_options(config: dict[str, Any]) -> None:
    from alexlab.inference.explain.neighbours import METRICS

    check_counts(config, {"num_mistakes": 0, "neighbours.num_images": 0, "neighbours.k": 1})
    metric = config["neighbours"]["metric"]
    if metric not in METRICS:
        raise ConfigError(f"neighbours.metric must be one of {', '.join(METRICS)}; got {metric!r}")
    if config["image"] is not None and not Path(config["image"]).is_file():
        raise ConfigError(f"image must be a file; {config['image']} does not exist")


def _image(
    config: dict[str, Any], model: "TrainedModel", predictions: "Predictions", view: "View"
) -> "tuple[Tensor, str]":
    """Return the image to explain, as the input of the network, and its path: `image`, or the most confident correct one."""
    from alexlab.data.dataset import ViewReader
    from alexlab.data.decode import decode
    from alexlab.inference.explain import sections

    if config["image"] is not None:
        read = ViewReader(view, model.decoding)
        return read(partial(decode, config["image"])), config["image"]
    row = int((predictions.label_prob * predictions.correct).argmax())
    return sections.load_view(model, predictions.split, predictions.indices[row], view), predictions.paths[row]


def _neighbour_grids(
    config: dict[str, Any], model: "TrainedModel", predictions: "Predictions", view: "View"
) -> "Grids":
    """Return the nearest training images; nothing if the training data is missing or one of its images is unreadable."""
    from alexlab.data.layout import find_layout
    from alexlab.inference.checkpoint import NO_SOURCE
    from alexlab.inference.explain import sections
    from alexlab.inference.predictions import select_split
    from alexlab.output.progress import track

    options = config["neighbours"]
    if not options["num_images"]:
        return {}
    changes = {key: config["data"][key] for key in ("batch_size", "num_workers") if config["data"][key] is not None}
    name, root = "train", options["root"]
    if root is not None:
        changes |= NO_SOURCE | {"root": root, "splits": {}, "folds": None, "fold": None, "fraction": 1.0}
        name = "train" if os.path.isdir(root) and find_layout(root).folders else "all"
    settings = model.data_settings(on_error="raise", **changes)
    try:
        _, train = select_split(model, settings, name, from_run=root is None)
        return sections.neighbour_grids(
            model,
            predictions,
            view,
            train,
            settings,
            num_images=options["num_images"],
            k=options["k"],
            metric=options["metric"],
            progress=partial(track, title=f"train: {len(train):,} images"),
        )
    except (DataError, ConfigError) as error:
        log.warning("no neighbours: %s; neighbours.root=DIR reads the training images from another folder", error)
        return {}


def _write_to_tensorboard(model: Any, run_dir: Path) -> None:
    """Add the plots to the Images tab of the checkpoint's run."""
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(model.run_dir)) as writer:
        for path in sorted(run_dir.glob("*.png")):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            writer.add_image(f"evaluation/{path.stem}", pixels, 0, dataformats="HWC")
