"""Measures that inspect a trained net: the colour of its kernels, and the neighbours of an image."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from alexlab.config import build_data
from alexlab.data.dataset import ViewReader
from alexlab.data.spacing import evenly_spaced
from alexlab.data.splits import Split
from alexlab.inference.checkpoint import TrainedModel, load_checkpoint
from alexlab.inference.explain.drawings import draw_filters, first_filters
from alexlab.inference.explain.neighbours import feature_matrix, matrix_path, nearest
from alexlab.inference.explain.sections import load_view
from alexlab.inference.predictions import select_split, split_loader
from alexlab.pages.image_grid import CaptionedImage, ImageGrid
from alexlab.papers.estimates import Estimate, mean_estimate, verdict_of_difference
from alexlab.papers.measurement import Measurement, points
from alexlab.papers.paper import Claim
from alexlab.records.results import RunResult
from alexlab.records.saved_predictions import SavedPredictions, read_predictions

NUM_SPLITS = 1000  # random divisions of the kernels into two halves
NUM_NEIGHBOURS = 6  # figure 4 of the 2012 paper
MAX_QUERIES = 1000  # validation images whose neighbours are searched
NUM_SHOWN = 5


def colour_shares(kernels: Tensor) -> np.ndarray:
    """Return for each kernel the share of its energy that is colour, float64 (F,): 0 is grey, 1 has no brightness.

    The energy is the sum of the squared weights without their mean; its grey part is that of the mean over the channels.

    Args:
        kernels: weights of a first convolution, (F, 3, H, W).
    """
    weights = kernels.double() - kernels.double().mean((1, 2, 3), keepdim=True)
    energy = (weights**2).sum((1, 2, 3))
    grey = 3 * (weights.mean(1) ** 2).sum((1, 2))
    shares: np.ndarray = (1 - grey / energy.clamp(min=1e-30)).numpy()
    return shares


def excess_gap(first: np.ndarray, second: np.ndarray) -> float:
    """Return by how much two towers differ in their mean colour share, beyond what random halves of the same kernels differ."""
    shares, count = np.concatenate([first, second]), len(first)
    generator = np.random.default_rng(0)
    halves = [generator.permutation(shares) for _ in range(NUM_SPLITS)]
    chance = statistics.fmean(abs(half[:count].mean() - half[count:].mean()) for half in halves)
    return float(abs(first.mean() - second.mean()) - chance)


def kernel_colours(claim: Claim, groups: Mapping[str, Sequence[RunResult]]) -> Measurement | None:
    """Return how much more colour the kernels of one tower have than those of the other, beyond chance."""
    nets = [load_checkpoint(str(run.folder), device="cpu").single.net for run in groups[claim.settings[0]]]
    filters = [first_filters(net) for net in nets]
    if any(len(blocks) != 2 or blocks[0].shape[1] != 3 for blocks in filters):
        return None
    shares = [[colour_shares(block) for block in blocks] for blocks in filters]
    estimate = mean_estimate([excess_gap(first, second) for first, second in shares])
    means = "; ".join(" and ".join(f"{share.mean():.2f}" for share in pair) for pair in shares)
    detail = (
        f"Mean colour share of the kernels of the two towers of each net: {means}. The number is the difference beyond that of "
        "random halves of the same kernels."
    )
    images = draw_filters(filters[0])
    caption = "The weights of each kernel of the first net, scaled to its own range."
    grid = ImageGrid("Kernels of the first convolution", caption, [[image] for image in images])
    text = f"{estimate.value:+.3f}"
    if estimate.low is not None:
        text += f" ({estimate.low:+.3f} to {estimate.high:+.3f})"
    return Measurement(estimate, verdict_of_difference(estimate), text, detail, grids=[grid])


def neighbours(claim: Claim, groups: Mapping[str, Sequence[RunResult]]) -> Measurement | None:
    """Return by how much the share of nearest training images of the same class is above chance."""
    run = groups[claim.settings[0]][0]
    kept = read_predictions(run.folder, "val")
    if kept is None:
        return None
    model = load_checkpoint(str(run.folder))
    settings = model.data_settings()
    view = build_data.eval_view(model.config)
    splits = {name: select_split(model, settings, name, from_run=True)[1] for name in ("train", "val")}
    matrices = {name: _features(model, split, view, settings) for name, split in splits.items()}
    queries = evenly_spaced(len(splits["val"]), MAX_QUERIES)
    rows, _ = nearest(np.asarray(matrices["val"][queries]), matrices["train"], NUM_NEIGHBOURS)
    labels = {name: np.asarray(split.labels) for name, split in splits.items()}
    same = (labels["train"][rows] == labels["val"][queries, None]).mean(1)
    counts = [np.bincount(labels[name], minlength=len(model.classes)) / len(labels[name]) for name in labels]
    chance = float(counts[0] @ counts[1])
    found = mean_estimate(same.tolist())
    estimate = Estimate(*(None if end is None else end - chance for end in (found.value, found.low, found.high)))  # type: ignore[arg-type]
    detail = (
        f"In the net of seed {run.seed}, {100 * found.value:.1f} % of the {NUM_NEIGHBOURS} nearest training images of each of "
        f"{len(same):,} validation images have its class, by chance {100 * chance:.1f} %; top-5 accuracy "
        f"{100 * (run.score('top5') or 0):.1f} %."
    )
    grid = _neighbour_grid(model, splits, dict(zip(queries, rows.tolist(), strict=True)), kept, view)
    return Measurement(estimate, verdict_of_difference(estimate), points(estimate), detail, grids=[grid])


def _features(model: TrainedModel, split: Split, view: Any, settings: Any) -> np.ndarray:
    assert model.path is not None  # a single network
    path = matrix_path(Path(settings.cache_dir), model.path, split, settings.decoding)
    return feature_matrix(model.single, split_loader(split, ViewReader(view, settings.decoding), settings), split, path)


def _neighbour_grid(
    model: TrainedModel,
    splits: Mapping[str, Split],
    neighbours: Mapping[int, Sequence[int]],
    kept: SavedPredictions,
    view: Any,
) -> ImageGrid:
    """Return some of the validation images with their five top classes and nearest training images."""
    groups, rows = [], list(neighbours)
    for row in [rows[position] for position in evenly_spaced(len(rows), NUM_SHOWN)]:
        answers = zip(kept.top_classes[row].tolist(), kept.top_probs[row].tolist(), strict=True)
        lines = [
            f"true: {model.names[kept.labels[row]]}",
            *(f"{prob:.2f} {model.names[each]}" for each, prob in answers),
        ]
        images = [_image(model, splits["val"], row, view, lines)]
        for index in neighbours[row]:
            images.append(_image(model, splits["train"], index, view, [model.names[splits["train"].labels[index]]]))
        groups.append(images)
    caption = "Left: an image with the five most probable classes; then the training images with the nearest last hidden layer."
    return ImageGrid("Top-5 predictions and nearest training images", caption, groups)


def _image(model: TrainedModel, split: Split, index: int, view: Any, lines: Sequence[str]) -> CaptionedImage:
    return CaptionedImage(load_view(model, split, index, view).permute(1, 2, 0).numpy(), lines)
