"""Predictions for unlabelled image files, in a stream of batches."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import default_collate

from alexlab.data.dataset import Reader
from alexlab.data.decode import decode
from alexlab.errors import ImageError
from alexlab.inference.ensemble import EnsembleInference
from alexlab.training.preprocessing import Inference


@dataclass(frozen=True)
class FilePrediction:
    """Top classes of one file, or the reason why it cannot be read.

    Args:
        path: path of the file.
        classes: class indices, most probable first.
        probs: probabilities of `classes`.
        error: set if the file cannot be read.
    """

    path: str
    classes: tuple[int, ...] = ()
    probs: tuple[float, ...] = ()
    error: ImageError | None = None


def predict_files(
    inference: Inference | EnsembleInference,
    paths: Iterable[str],
    read: Reader,
    *,
    top_k: int,
    batch_size: int,
    num_threads: int,
) -> Iterator[FilePrediction]:
    """Predict files in order; unreadable files are yielded as errors and do not stop the iteration.

    Args:
        inference: network, or ensemble, with its preprocessing.
        paths: image files; at most three batches of them are in memory.
        read: reading of an image as an input of `inference`, see `TrainedModel.reader`.
        top_k: number of classes per file.
        batch_size: files per forward pass.
        num_threads: threads that decode files while the network computes.
    """
    batch: list[tuple[str, Any]] = []
    for item in _prefetch(paths, read, num_threads, num_prefetched=2 * batch_size):
        batch.append(item)
        if len(batch) == batch_size:
            yield from _predict_batch(inference, batch, top_k)
            batch = []
    if batch:
        yield from _predict_batch(inference, batch, top_k)


def _prefetch(paths: Iterable[str], read: Reader, num_threads: int, num_prefetched: int) -> Iterator[tuple[str, Any]]:
    """Yield paths and inputs, or ImageErrors, in order, decoding up to `num_prefetched` files in advance."""

    def load(path: str) -> Any:
        try:
            return read(partial(decode, path))
        except ImageError as error:
            return error

    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque[tuple[str, Future[Any]]] = deque()
        for path in paths:
            pending.append((path, pool.submit(load, path)))
            if len(pending) > num_prefetched:
                first, result = pending.popleft()
                yield first, result.result()
        while pending:
            first, result = pending.popleft()
            yield first, result.result()


@torch.inference_mode()
def _predict_batch(
    inference: Inference | EnsembleInference, batch: list[tuple[str, Any]], top_k: int
) -> Iterator[FilePrediction]:
    inputs = [item for _, item in batch if not isinstance(item, ImageError)]
    rows: Iterator[tuple[list[int], list[float]]] = iter([])
    if inputs:
        probs = inference.probs(default_collate(inputs)).cpu()
        top = probs.topk(min(top_k, probs.shape[1]), dim=1)
        rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    for path, item in batch:
        if isinstance(item, ImageError):
            yield FilePrediction(path, error=item)
        else:
            classes, values = next(rows)
            yield FilePrediction(path, tuple(classes), tuple(values))
