"""Exact nearest training images by the last hidden layer, as in figure 4 of the 2012 paper."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances
from torch import Tensor

from alexlab.data.fingerprint import cache_key
from alexlab.data.image_file import Decoding
from alexlab.data.splits import Split
from alexlab.distributed.transfer import file_digest
from alexlab.errors import ConfigError, DataError
from alexlab.inference.explain.activations import call_on_layers, head_layer
from alexlab.records.atomic import atomic_path
from alexlab.records.disk_errors import disk_errors, reserve
from alexlab.training.preprocessing import Inference

METRICS = {"euclidean": euclidean_distances, "cosine": cosine_distances}
ONCE = "once-"  # of a matrix that no later call may use
CHUNK = 8192  # rows of the matrix per step of the search


@torch.inference_mode()
def features(inference: Inference, images: Tensor, layer: str) -> Tensor:
    """Return the input of a layer, float32 (N, D); feature maps are averaged over their positions.

    Args:
        inference: network with its preprocessing.
        images: uint8 (N, C, H, W).
        layer: name of the layer.
    """
    inputs: list[Tensor] = []

    def keep(name: str, layer_input: Tensor, _: Tensor) -> None:
        inputs.append(layer_input.detach().clone())

    with call_on_layers(inference.net, keep, [layer]):
        inference(images)
    hidden = inputs[-1]
    return (hidden.mean((2, 3)) if hidden.ndim == 4 else hidden).float().cpu()


def feature_matrix(
    inference: Inference, loader: Any, split: Split, path: Path, *, progress: Callable[[Any], Iterator[Any]] = iter
) -> np.ndarray:
    """Return the last hidden layer for each image of a split, float32 (N, D), memory-mapped from a cache file.

    Args:
        inference: network with its preprocessing.
        loader: loader from `alexlab.inference.predictions.split_loader`, with one view per image.
        split: split of the loader.
        path: cache file, written if it does not exist.
        progress: wrapper of the loader that shows a progress bar.

    Raises:
        DataError: if an image cannot be read.
    """
    if path.is_file():
        return np.load(path, mmap_mode="r")
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix: np.memmap[Any, Any] | None = None
    layer = ""
    with atomic_path(path) as partial:
        for images, labels, indices in progress(loader):
            if (labels < 0).any():
                raise DataError(f"every image of {split.root} must be readable to be a neighbour")
            layer = layer or head_layer(inference.net, inference.normalize(images[:1]))
            rows = features(inference, images, layer).numpy()
            if matrix is None:
                matrix = np.lib.format.open_memmap(partial, "w+", np.float32, (len(split), rows.shape[1]))
                with disk_errors(path):
                    reserve(partial)
            matrix[indices.numpy()] = rows
        assert matrix is not None
        matrix.flush()
    found: np.ndarray = np.load(path, mmap_mode="r")
    if path.name.startswith(ONCE):
        path.unlink()  # the mapping remains valid
    return found


def matrix_path(cache_dir: Path, checkpoint: Path, split: Split, decoding: Decoding) -> Path:
    """Return the path of the cached matrix, which depends on the checkpoint's content, the files of the split and their decoding.

    It is used once for images without files, such as those of an own dataset, because they may have changed.
    """
    key = cache_key(split, file_digest(checkpoint), asdict(decoding))
    return cache_dir / "features" / f"{key or ONCE + os.urandom(12).hex()}.npy"


def nearest(
    queries: np.ndarray, matrix: np.ndarray, count: int, metric: str = "euclidean"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest rows of a matrix to each query, by exhaustive search.

    Args:
        queries: float32 (Q, D).
        matrix: float32 (N, D).
        count: number of neighbours, at most N.
        metric: `euclidean` (as in the 2012 paper) or `cosine`.

    Returns:
        Row numbers, int64 (Q, count), nearest first and ties by row number; and their distances.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
    count = min(count, len(matrix))
    rows, distances = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0))
    targets = queries.astype(np.float64)
    for start in range(0, len(matrix), CHUNK):
        part = np.asarray(matrix[start : start + CHUNK], np.float64)
        far = METRICS[metric](targets, part)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(start, start + len(part)), far.shape)], 1)
        distances = np.concatenate([distances, far], 1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        rows, distances = np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1)
    return rows, distances
