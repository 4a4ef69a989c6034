"""What `explain.py` shows: each function makes the figures of one section, by the names of their files."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexlab.data.config import DataConfig
from alexlab.data.dataset import to_tensor
from alexlab.data.splits import Split
from alexlab.inference.checkpoint import TrainedModel
from alexlab.inference.explain.activations import convolutions, head, watched
from alexlab.inference.explain.gradcam import grad_cam, overlaid
from alexlab.inference.explain.neighbours import feature_matrix, features, matrix_path, nearest
from alexlab.inference.explain.plots import filters_plot, first_filters, maps_plot, sheet
from alexlab.inference.predictions import Predictions, split_loader

Figures = dict[str, Any]
View = Callable[[Tensor], Tensor]


def seen(split: Split, number: int, trained: TrainedModel, view: View) -> Tensor:
    """An image of a split as the net sees it, uint8 (C, H, W)."""
    return view(to_tensor(split.load(int(number), trained.decoding)))


def filters(trained: TrainedModel) -> Figures:
    """The kernels of the first convolution; none of a net without one."""
    if not convolutions(trained.inference.net):
        return {}
    return {"filters": filters_plot(first_filters(trained.inference.net))}


def mistakes(trained: TrainedModel, found: Predictions, view: View, limit: int) -> Figures:
    """The mistakes that the net is surest of, and the images whose class it thinks least likely, each with its Grad-CAM."""
    wrong = np.flatnonzero(~found.right)
    chosen = {
        "confident_mistakes": wrong[np.argsort(-found.probs[wrong, 0], kind="stable")][:limit],
        "worst_mistakes": wrong[np.argsort(found.own[wrong], kind="stable")][:limit],
    }
    if len(wrong) <= limit or list(chosen["worst_mistakes"]) == list(chosen["confident_mistakes"]):
        del chosen["worst_mistakes"]  # the same images: of two classes they always are
    titles = {
        "confident_mistakes": "mistakes, the surest first, and what speaks for the answer",
        "worst_mistakes": "images whose class is thought least likely, and what speaks for the answer",
    }
    return {
        name: _with_cams(trained, found, view, rows.tolist(), titles[name])
        for name, rows in chosen.items()
        if len(rows)
    }


def _with_cams(trained: TrainedModel, found: Predictions, view: View, rows: Sequence[int], title: str) -> Any:
    images = torch.stack([seen(found.split, found.numbers[row], trained, view) for row in rows])
    cams = grad_cam(trained.inference, images, torch.from_numpy(found.top[rows, 0]))
    cells = []
    for image, cam, row in zip(images, cams, rows, strict=True):
        label, answer = (trained.names[number] for number in (found.labels[row], found.top[row, 0]))
        lines = f"{label} {found.own[row]:.2f}", os.path.basename(found.paths[row])
        cells += [(_pixels(image), lines), (overlaid(image, cam).numpy(), (f"{answer} {found.probs[row, 0]:.2f}",))]
    return sheet([cells[start : start + 6] for start in range(0, len(cells), 6)], title)


def one_image(trained: TrainedModel, image: Tensor, title: str, num_answers: int = 3) -> Figures:
    """One image: Grad-CAM for its first answers, and its maps in each convolution.

    Args:
        trained: the net.
        image: as it sees it, uint8 (C, H, W).
        title: of the image.
        num_answers: that are explained.
    """
    image = image[None]
    with torch.inference_mode():
        probs = trained.inference.probs(image)[0].cpu()
    answers = probs.topk(min(num_answers, len(probs)))
    cams = grad_cam(trained.inference, image.expand(len(answers.indices), -1, -1, -1), answers.indices)
    cells = [(_pixels(image[0]), (os.path.basename(title),))]
    for cam, answer, prob in zip(cams, answers.indices.tolist(), answers.values.tolist(), strict=True):
        cells.append((overlaid(image[0], cam).numpy(), (f"{trained.names[answer]} {prob:.3f}",)))
    figures = {"grad_cam": sheet([cells], "what speaks for the first answers (Grad-CAM)")}
    wanted = {name for name, _ in convolutions(trained.inference.net)}
    maps: dict[str, Tensor] = {}

    def see(name: str, _: Tensor, output: Tensor) -> None:
        if name in wanted:
            maps[name] = output[0].detach().clone()

    with torch.inference_mode(), watched(trained.inference.net, see):
        trained.inference(image)
    return figures | {f"maps_{name.replace('.', '_')}": maps_plot(found.relu(), name) for name, found in maps.items()}


def neighbours(
    trained: TrainedModel,
    found: Predictions,
    view: View,
    train: Split,
    settings: DataConfig,
    *,
    num_images: int,
    k: int,
    metric: str,
    watch: Callable[[Any], Iterator[Any]],
) -> Figures:
    """For some images, evenly spaced, their nearest training images by the last hidden layer.

    Args:
        trained, found, view: the net, what it says, and the view that it sees.
        train: the training images.
        settings: how they are read.
        num_images: number of rows.
        k: neighbours of each.
        metric: see `alexlab.inference.explain.neighbours.nearest`.
        watch: an iterator that shows the progress.
    """
    path = matrix_path(Path(settings.cache_dir), trained.path, train)
    matrix = feature_matrix(trained.inference, split_loader(train, view, settings), train, path, watch=watch)
    rows = np.unique(np.linspace(0, len(found.paths) - 1, min(num_images, len(found.paths))).round().astype(int))
    asked = torch.stack([seen(found.split, found.numbers[row], trained, view) for row in rows])
    layer = head(trained.inference.net, trained.inference.normalize(asked[:1]))
    queries = features(trained.inference, asked, layer).numpy()
    near, distances = nearest(queries, matrix, k, metric)
    cells = []
    for place, row in enumerate(rows):
        lines = trained.names[found.labels[row]], f"answer {trained.names[found.top[row, 0]]}"
        cells.append([(_pixels(asked[place]), lines)])
        for training_row, distance in zip(near[place].tolist(), distances[place].tolist(), strict=True):
            pixels = _pixels(seen(train, training_row, trained, view))
            cells[-1].append((pixels, (trained.names[train.labels[training_row]], f"{distance:.3g}")))
    title = (
        f"left: images of the split; right: the nearest training images, {metric} distance of the {matrix.shape[1]} "
        "values of the last hidden layer"
    )
    return {"neighbours": sheet(cells, title)}


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
