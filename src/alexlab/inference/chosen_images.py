"""Chosen images of a split with their predicted and actual classes."""

import os
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from alexlab.data.spacing import evenly_spaced
from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.mistakes import captioned_image
from alexlab.inference.predictions import Predictions
from alexlab.output.escape import shown
from alexlab.pages.image_grid import ImageGrid


def choose_images(predictions: Predictions, show: Any) -> list[int]:
    """Return the rows of the images that `show` asks for.

    Args:
        predictions: predictions on the split.
        show: None for no image, a number of evenly spaced images, or the path of an image or a list of paths, of which the last
            parts suffice.

    Raises:
        ConfigError: if it is something else, or a path does not name exactly one image.
    """
    if show is None:
        return []
    if isinstance(show, int) and not isinstance(show, bool) and show > 0:
        return evenly_spaced(len(predictions.labels), show)
    names = [show] if isinstance(show, str) else show
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"show must be null, a number of images or a list of their paths; got {show!r}")
    return [_find(predictions.paths, name) for name in names]


def _find(paths: Sequence[str], name: str) -> int:
    end = os.sep + os.path.normpath(name).lstrip(os.sep)
    found = [row for row, path in enumerate(paths) if (os.sep + path.lstrip(os.sep)).endswith(end)]
    if len(found) != 1:
        first = ", ".join(shown(paths[row]) for row in found[:3])
        problem = f"{len(found)} paths end with it, such as {first}" if found else "the split has no such image"
        raise ConfigError(f"show must name images of the split by the end of their paths; got {shown(name)}: {problem}")
    return found[0]


def chosen_grid(model: TrainedModel, predictions: Predictions, rows: Sequence[int]) -> dict[str, ImageGrid]:
    """Return the images at some rows as they are on disk, with their labels and predictions; nothing without rows."""
    if not rows:
        return {}
    correct = int(predictions.correct[list(rows)].sum())
    caption = f"{correct} of these {len(rows)} images {'is' if correct == 1 else 'are'} classified correctly."
    groups = [[captioned_image(model, predictions, row)] for row in rows]
    return {"images": ImageGrid("Chosen images", caption, groups, groups_per_row=6)}


def chosen_table(model: TrainedModel, predictions: Predictions, rows: Sequence[int]) -> Table:
    """Return a table of the images at some rows: path, label, prediction and its probability."""
    table = Table("image", "true", "predicted", "probability", "", title="chosen images")
    for row in rows:
        label, top_class = model.names[predictions.labels[row]], model.names[predictions.top_classes[row, 0]]
        mark = "" if predictions.correct[row] else "wrong"
        relative = predictions.split.paths[predictions.indices[row]]
        table.add_row(relative, label, top_class, f"{predictions.top_probs[row, 0]:.4f}", mark)
    return table
