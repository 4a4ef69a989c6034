"""The nearest training images by the last hidden layer, as in figure 4 of the 2012 paper: exact, from a stored matrix."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexlab.data.splits import Split
from alexlab.errors import ConfigError, DataError
from alexlab.inference.explain.activations import head, watched
from alexlab.runs.atomic import disk_errors
from alexlab.training.preprocessing import Inference

METRICS = ("euclidean", "cosine")
MAX_STATES = 100_000  # files of a split that are looked at, evenly spaced, to see whether they have changed
CHUNK = 8192  # rows of the matrix that are compared at once


@torch.inference_mode()
def features(inference: Inference, images: Tensor, layer: str) -> Tensor:
    """What enters a layer, (N, D); of maps, their mean over the places.

    Args:
        inference: the net.
        images: uint8 (N, C, H, W).
        layer: its name.
    """
    seen: list[Tensor] = []

    def see(name: str, entering: Tensor, _: Tensor) -> None:
        if name == layer:
            seen.append(entering.detach().clone())

    with watched(inference.net, see):
        inference(images)
    found = seen[-1]
    return (found.mean((2, 3)) if found.ndim == 4 else found).float().cpu()


def feature_matrix(
    inference: Inference, loader: Any, split: Split, path: Path, *, watch: Callable[[Any], Iterator[Any]] = iter
) -> np.ndarray:
    """The last hidden layer for each image of a split, float32 (N, D), memory-mapped from a file that is made once.

    Args:
        inference: the net.
        loader: from `alexlab.inference.predictions.split_loader`, of single views.
        split: of the loader.
        path: of the file; one that is there is taken.
        watch: an iterator that shows the progress.

    Raises:
        DataError: when an image could not be read.
    """
    if path.is_file():
        return np.load(path, mmap_mode="r")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.npy")
    matrix: np.memmap[Any, Any] | None = None
    layer = ""
    for images, labels, numbers in watch(loader):
        if (labels < 0).any():
            raise DataError(f"every image of {split.root} must be readable to be compared with")
        layer = layer or head(inference.net, inference.normalize(images[:1]))
        rows = features(inference, images, layer).numpy()
        if matrix is None:
            matrix = np.lib.format.open_memmap(unfinished, "w+", np.float32, (len(split), rows.shape[1]))
            with disk_errors(path), unfinished.open("r+b") as file:  # else a full disk is a SIGBUS below
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        matrix[numbers.numpy()] = rows
    assert matrix is not None
    matrix.flush()
    os.replace(unfinished, path)
    return np.load(path, mmap_mode="r")


def matrix_path(cache_dir: Path, checkpoint: Path, split: Split) -> Path:
    """Where the matrix of a checkpoint and a split is kept: another checkpoint or other files give another one."""
    digest = hashlib.blake2b(digest_size=12)
    with checkpoint.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    digest.update(json.dumps([os.path.abspath(split.root), len(split)]).encode())
    for path in split.paths:
        digest.update(os.fsencode(path) + b"\0")
    digest.update(np.array([split.file_state(row) for row in split.sample_indices(MAX_STATES)], np.int64).tobytes())
    return cache_dir / "features" / f"{digest.hexdigest()}.npy"


def nearest(
    queries: np.ndarray, matrix: np.ndarray, count: int, metric: str = "euclidean"
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest rows of a matrix to each query, by comparing with all of them.

    Args:
        queries: float32 (Q, D).
        matrix: float32 (N, D).
        count: of the neighbours; at most N are given.
        metric: `euclidean` (the paper's) or `cosine`.

    Returns:
        Rows, int64 (Q, count), nearest first (of equally near ones the first row first), and their distances.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
    count = min(count, len(matrix))
    rows, distances = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0))
    asked = _unit(queries) if metric == "cosine" else queries.astype(np.float64)
    for start in range(0, len(matrix), CHUNK):
        part = np.asarray(matrix[start : start + CHUNK])
        part = _unit(part) if metric == "cosine" else part.astype(np.float64)
        if metric == "cosine":
            far = 1 - asked @ part.T
        else:
            squares = (asked**2).sum(1)[:, None] - 2 * asked @ part.T + (part**2).sum(1)[None]
            far = np.sqrt(squares.clip(min=0))
        rows = np.concatenate([rows, np.broadcast_to(np.arange(start, start + len(part)), far.shape)], 1)
        distances = np.concatenate([distances, far], 1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        rows, distances = np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1)
    return rows, distances


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float64).tiny)
