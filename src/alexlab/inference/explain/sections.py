"""Figures of `explain.py`: one function per section of the page, which returns figures by file name."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from alexlab.data.config import DataConfig
from alexlab.data.dataset import ViewReader
from alexlab.data.splits import Split
from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.explain.activations import call_on_layers, convolutions, head_layer
from alexlab.inference.explain.gradcam import grad_cam, overlaid
from alexlab.inference.explain.neighbours import feature_matrix, features, matrix_path, nearest
from alexlab.inference.explain.plots import feature_maps_plot, filters_plot, first_filters, image_grid
from alexlab.inference.predictions import Predictions, split_loader

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Figures = dict[str, "Figure"]
View = Callable[[Tensor], Tensor]

MISTAKE_TITLES = {
    "confident_mistakes": "mistakes, most confident first, with the evidence for the predicted class",
    "worst_mistakes": "images with the least probable labels, with the evidence for the predicted class",
}


def load_view(model: TrainedModel, split: Split, index: int, view: View) -> Tensor:
    """Return an image of a split as the input of the network, uint8 (C, H, W)."""
    image: Tensor = ViewReader(view, model.decoding)(partial(split.load, int(index), model.decoding))
    return image


def filter_figures(model: TrainedModel) -> Figures:
    """Return a figure of the kernels of the first convolution; none for a network without convolutions."""
    if not convolutions(model.inference.net):
        return {}
    return {"filters": filters_plot(first_filters(model.inference.net))}


def mistake_figures(model: TrainedModel, predictions: Predictions, view: View, limit: int) -> Figures:
    """Return the most confident mistakes and the mistakes whose labels are least probable, each image with its Grad-CAM.

    Args:
        model: trained model.
        predictions: its predictions.
        view: evaluation transform with one view.
        limit: maximum number of images per figure.
    """
    wrong = np.flatnonzero(~predictions.correct)
    rows = {
        "confident_mistakes": wrong[np.argsort(-predictions.top_probs[wrong, 0], kind="stable")][:limit],
        "worst_mistakes": wrong[np.argsort(predictions.label_prob[wrong], kind="stable")][:limit],
    }
    if len(wrong) <= limit or list(rows["worst_mistakes"]) == list(rows["confident_mistakes"]):
        del rows["worst_mistakes"]  # the same images, as always with two classes
    return {
        name: _grad_cam_figure(model, predictions, view, chosen.tolist(), MISTAKE_TITLES[name])
        for name, chosen in rows.items()
        if len(chosen)
    }


def _grad_cam_figure(
    model: TrainedModel, predictions: Predictions, view: View, rows: Sequence[int], title: str
) -> "Figure":
    images = torch.stack([load_view(model, predictions.split, predictions.indices[row], view) for row in rows])
    top_classes, top_probs = predictions.top_classes[rows, 0], predictions.top_probs[rows, 0]
    cams = grad_cam(model.inference, images, torch.from_numpy(top_classes))
    cells: list[tuple[np.ndarray, Sequence[str]]] = []
    for image, cam, row, top_class, top_prob in zip(images, cams, rows, top_classes, top_probs, strict=True):
        label = f"{model.names[predictions.labels[row]]} {predictions.label_prob[row]:.2f}"
        cells.append((_pixels(image), (label, os.path.basename(predictions.paths[row]))))
        cells.append((overlaid(image, cam).numpy(), (f"{model.names[top_class]} {top_prob:.2f}",)))
    return image_grid([cells[start : start + 6] for start in range(0, len(cells), 6)], title)


def image_figures(model: TrainedModel, image: Tensor, path: str, num_classes: int = 3) -> Figures:
    """Return Grad-CAM of the top classes of an image, and its feature maps in each convolution.

    Args:
        model: trained model.
        image: input of the network, uint8 (C, H, W).
        path: path of the image, for the title.
        num_classes: number of top classes.
    """
    images = image[None]
    with torch.inference_mode():
        probs = model.inference.probs(images)[0].cpu()
    top = probs.topk(min(num_classes, len(probs)))
    cams = grad_cam(model.inference, images.expand(len(top.indices), -1, -1, -1), top.indices)
    cells: list[tuple[np.ndarray, Sequence[str]]] = [(_pixels(image), (os.path.basename(path),))]
    for cam, number, prob in zip(cams, top.indices.tolist(), top.values.tolist(), strict=True):
        cells.append((overlaid(image, cam).numpy(), (f"{model.names[number]} {prob:.3f}",)))
    figures = {"grad_cam": image_grid([cells], "evidence for the top classes (Grad-CAM)")}
    names = {name for name, _ in convolutions(model.inference.net)}
    maps: dict[str, Tensor] = {}

    def keep(name: str, _: Tensor, output: Tensor) -> None:
        if name in names:
            maps[name] = output[0].detach().clone()

    with torch.inference_mode(), call_on_layers(model.inference.net, keep):
        model.inference(images)
    plots = {f"maps_{name.replace('.', '_')}": feature_maps_plot(found.relu(), name) for name, found in maps.items()}
    return figures | plots


def neighbour_figures(
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
) -> Figures:
    """Return a figure of evenly spaced images with their nearest training images by the last hidden layer.

    Args:
        model, predictions, view: trained model, its predictions and its evaluation transform.
        train: training images.
        settings: data settings of `train`.
        num_images: number of rows.
        k: neighbours per row.
        metric: see `alexlab.inference.explain.neighbours.nearest`.
        progress: wrapper of the loader that shows a progress bar.
    """
    path = matrix_path(Path(settings.cache_dir), model.path, train)
    loader = split_loader(train, view, settings)
    matrix = feature_matrix(model.inference, loader, train, path, progress=progress)
    count = len(predictions.labels)
    rows = np.unique(np.linspace(0, count - 1, min(num_images, count)).round().astype(int))
    images = torch.stack([load_view(model, predictions.split, predictions.indices[row], view) for row in rows])
    layer = head_layer(model.inference.net, model.inference.normalize(images[:1]))
    queries = features(model.inference, images, layer).numpy()
    neighbours, distances = nearest(queries, matrix, k, metric)
    cells: list[list[tuple[np.ndarray, Sequence[str]]]] = []
    for row, image, indices, far in zip(rows, images, neighbours.tolist(), distances.tolist(), strict=True):
        label, top_class = (model.names[n] for n in (predictions.labels[row], predictions.top_classes[row, 0]))
        cells.append([(_pixels(image), (label, f"predicted {top_class}"))])
        for index, distance in zip(indices, far, strict=True):
            pixels = _pixels(load_view(model, train, index, view))
            cells[-1].append((pixels, (model.names[train.labels[index]], f"{distance:.3g}")))
    title = (
        f"left: images of the split; right: the nearest training images by {metric} distance of the "
        f"{matrix.shape[1]} activations of the last hidden layer"
    )
    return {"neighbours": image_grid(cells, title)}


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
