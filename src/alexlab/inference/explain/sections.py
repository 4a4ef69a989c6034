"""Sections of the page of `explain.py`: images by file name."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexlab.data.config import DataConfig
from alexlab.data.dataset import ViewReader
from alexlab.data.spacing import evenly_spaced
from alexlab.data.splits import Split
from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.explain.activations import call_on_layers, convolutions, head_layer
from alexlab.inference.explain.drawings import draw_feature_maps, draw_filters, first_filters
from alexlab.inference.explain.gradcam import grad_cam, overlaid
from alexlab.inference.explain.neighbours import feature_matrix, features, matrix_path, nearest
from alexlab.inference.mistakes import confident_mistakes, improbable_labels, label_and_prediction
from alexlab.inference.predictions import Predictions, split_loader
from alexlab.pages.image_grid import CaptionedImage, ImageGrid

Grids = dict[str, ImageGrid]
View = Callable[[Tensor], Tensor]

NUM_CLASSES = 3  # most probable classes that an image is explained for
NUM_REFERENCES = 1000  # training images, evenly spaced, for the typical distance
HEAT_MAP = (
    "The heat map shows the evidence for the prediction (Grad-CAM): yellow marks the strongest evidence, grey none."
)


def load_view(model: TrainedModel, split: Split, index: int, view: View) -> Tensor:
    """Return an image of a split as the input of the network, uint8 (C, H, W)."""
    image: Tensor = ViewReader(view, model.decoding)(partial(split.load, int(index)))
    return image


def filter_grids(model: TrainedModel) -> Grids:
    """Return the kernels of the first convolution; nothing for a network without convolutions."""
    if not convolutions(model.single.net):
        return {}
    caption = "The weights of each kernel, scaled to its own range."
    images = draw_filters(first_filters(model.single.net))
    return {"filters": ImageGrid("First-layer kernels", caption, [[image] for image in images])}


def mistake_grids(model: TrainedModel, predictions: Predictions, view: View, limit: int) -> Grids:
    """Return the most confident mistakes and the mistakes whose labels are least probable, each image with its Grad-CAM.

    Args:
        model: trained model.
        predictions: its predictions.
        view: evaluation transform with one view.
        limit: maximum number of images per grid.
    """
    rows = confident_mistakes(predictions, limit).tolist()
    worst = improbable_labels(predictions, limit).tolist()
    if not rows:
        return {}
    caption = f"Misclassified images, the highest probability of the predicted class first. {HEAT_MAP}"
    grids = {"confident_mistakes": _heat_maps(model, predictions, view, rows, "Most confident mistakes", caption)}
    if set(worst) != set(rows):  # with two classes they are always the same
        caption = f"Misclassified images, the lowest probability of the label first. {HEAT_MAP}"
        heading = "Mistakes with the least probable labels"
        grids["worst_mistakes"] = _heat_maps(model, predictions, view, worst, heading, caption)
    return grids


def _heat_maps(
    model: TrainedModel, predictions: Predictions, view: View, rows: Sequence[int], heading: str, caption: str
) -> ImageGrid:
    images = torch.stack([load_view(model, predictions.split, predictions.indices[row], view) for row in rows])
    cams = grad_cam(model.single, images, torch.from_numpy(predictions.top_classes[rows, 0]))
    groups = []
    for image, cam, row in zip(images, cams, rows, strict=True):
        label, predicted = label_and_prediction(model, predictions, row)
        name = os.path.basename(predictions.paths[row])
        groups.append([CaptionedImage(_pixels(image), (label, name)), _heat_map(image, cam, predicted)])
    return ImageGrid(heading, caption, groups, groups_per_row=3)


def _heat_map(image: Tensor, cam: Tensor, line: str) -> CaptionedImage:
    return CaptionedImage(overlaid(image, cam).numpy(), (line,) if cam.any() else (line, "no evidence found"))


def image_grids(model: TrainedModel, image: Tensor, path: str) -> Grids:
    """Return Grad-CAM of the top classes of an image, and its feature maps in each convolution.

    Args:
        model: trained model.
        image: input of the network, uint8 (C, H, W).
        path: path of the image, for the captions.
    """
    images, name = image[None], os.path.basename(path)
    with torch.inference_mode():
        probs = model.single.probs(images)[0].cpu()
    top = probs.topk(min(NUM_CLASSES, len(probs)))
    cams = grad_cam(model.single, images.expand(len(top.indices), -1, -1, -1), top.indices)
    group = [CaptionedImage(_pixels(image), (name,))]
    for cam, number, prob in zip(cams, top.indices.tolist(), top.values.tolist(), strict=True):
        group.append(_heat_map(image, cam, f"{model.names[number]} (p {prob:.3f})"))
    caption = (
        "Evidence for each of the most probable classes (Grad-CAM): yellow marks the strongest evidence, grey none."
    )
    names = {name for name, _ in convolutions(model.single.net)}
    maps: dict[str, Tensor] = {}

    def keep(layer: str, _: Tensor, output: Tensor) -> None:
        maps[layer] = output[0].detach().clone()

    with torch.inference_mode(), call_on_layers(model.single.net, keep, names):
        model.single(images)
    drawings = [[draw_feature_maps(found, layer)] for layer, found in maps.items()]
    about = f"Feature maps of {name} in each convolution, strongest first. Each layer has its own colour scale."
    return {
        "grad_cam": ImageGrid("Evidence in one image", caption, [group]),
        "feature_maps": ImageGrid("Feature maps of this image", about, drawings),
    }


def neighbour_grids(
    model: TrainedModel,
    predictions: Predictions,
    view: View,
    train: Split,
    settings: DataConfig,
    *,
    num_images: int,
    k: int,
    metric: str,
    progress: Callable[[Any], Iterator[Any]],
) -> Grids:
    """Return evenly spaced images with their nearest training images by the last hidden layer.

    Args:
        model, predictions, view: trained model, its predictions and its evaluation transform.
        train: training images.
        settings: data settings of `train`.
        num_images: number of rows.
        k: neighbours per row.
        metric: see `alexlab.inference.explain.neighbours.nearest`.
        progress: wrapper of the loader that shows a progress bar.
    """
    assert model.path is not None  # a single network
    path = matrix_path(Path(settings.cache_dir), model.path, train, settings.decoding)
    loader = split_loader(train, ViewReader(view, settings.decoding), settings)
    matrix = feature_matrix(model.single, loader, train, path, progress=progress)
    rows = evenly_spaced(len(predictions.labels), num_images)
    images = torch.stack([load_view(model, predictions.split, predictions.indices[row], view) for row in rows])
    layer = head_layer(model.single.net, model.single.normalize(images[:1]))
    queries = features(model.single, images, layer).numpy()
    neighbours, distances = nearest(queries, matrix, k, metric)
    groups = []
    for row, image, indices, far in zip(rows, images, neighbours.tolist(), distances.tolist(), strict=True):
        label, top_class = (model.names[n] for n in (predictions.labels[row], predictions.top_classes[row, 0]))
        groups.append([CaptionedImage(_pixels(image), (f"true {label}", f"predicted {top_class}"))])
        for index, distance in zip(indices, far, strict=True):
            pixels = _pixels(load_view(model, train, index, view))
            groups[-1].append(CaptionedImage(pixels, (model.names[train.labels[index]], f"distance {distance:.3g}")))
    references = matrix[:: max(1, len(matrix) // NUM_REFERENCES)]
    typical = np.median(nearest(queries, references, len(references), metric)[1])
    caption = (
        f"On the left an image of the split, then the training images whose last hidden layer, {matrix.shape[1]} activations, "
        f"has the smallest {metric} distance. 0 means identical activations; the "
        f"median distance to {len(references):,} evenly spaced training images is {typical:.3g}."
    )
    return {"neighbours": ImageGrid("Nearest training images", caption, groups)}


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
