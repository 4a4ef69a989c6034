"""Misclassified images of a split."""

import os
from dataclasses import replace
from typing import Any

import numpy as np

from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.predictions import Predictions
from alexlab.pages.image_grid import CaptionedImage, ImageGrid


def confident_mistakes(predictions: Predictions, limit: int) -> np.ndarray:
    """Return the rows of the misclassified images with the highest confidence, int64 (at most `limit`,)."""
    wrong = np.flatnonzero(~predictions.correct)
    chosen: np.ndarray = wrong[np.argsort(-predictions.top_probs[wrong, 0], kind="stable")][:limit]
    return chosen


def improbable_labels(predictions: Predictions, limit: int) -> np.ndarray:
    """Return the rows of the misclassified images whose labels have the lowest probability, int64 (at most `limit`,)."""
    wrong = np.flatnonzero(~predictions.correct)
    chosen: np.ndarray = wrong[np.argsort(predictions.label_prob[wrong], kind="stable")][:limit]
    return chosen


def label_and_prediction(model: TrainedModel, predictions: Predictions, row: int) -> tuple[str, str]:
    """Return the label and the predicted class of an image, each with its probability, as captions."""
    label, top_class = model.names[predictions.labels[row]], model.names[predictions.top_classes[row, 0]]
    return (
        f"true {label} (p {predictions.label_prob[row]:.2f})",
        f"predicted {top_class} (p {predictions.top_probs[row, 0]:.2f})",
    )


def captioned_image(model: TrainedModel, predictions: Predictions, row: int) -> CaptionedImage:
    """Return an image as it is on disk, with its label, its prediction and the name of its file."""
    decoding: Any = replace(model.decoding, channels=3)
    pixels = predictions.split.load(int(predictions.indices[row]), decoding)
    lines = (*label_and_prediction(model, predictions, row), os.path.basename(predictions.paths[row]))
    return CaptionedImage(pixels, lines)


def mistake_grid(model: TrainedModel, predictions: Predictions, limit: int) -> list[ImageGrid]:
    """Return the most confident mistakes as they are on disk; nothing if there are none.

    Args:
        model: the model that made the predictions.
        predictions: the predictions.
        limit: maximum number of images.
    """
    groups = [[captioned_image(model, predictions, row)] for row in confident_mistakes(predictions, limit).tolist()]
    caption = "Misclassified images, the highest probability of the predicted class first."
    return [ImageGrid("Most confident mistakes", caption, groups, groups_per_row=6)] if groups else []
