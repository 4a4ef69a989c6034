"""What a trained net says of files that nobody has labelled: one after the other, in constant memory."""

import glob
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alexlab.data.decode import decode
from alexlab.data.image_file import Decoding
from alexlab.data.images import to_tensor
from alexlab.data.listing import IMAGE_EXTENSIONS, shown
from alexlab.errors import DataError, ImageError
from alexlab.inference import Inference


@dataclass(frozen=True)
class Prediction:
    """What a net says of one file.

    Args:
        path: of the file.
        answers: classes by falling probability; none of a file that cannot be read.
        probs: their probabilities.
        error: why it cannot be read.
    """

    path: str
    answers: tuple[int, ...] = ()
    probs: tuple[float, ...] = ()
    error: ImageError | None = None


def find_files(wanted: str) -> Iterator[str]:
    """The files that a word names, in the order of the file system: none of their names is kept.

    Args:
        wanted: a file, a folder (the images below it), a glob (`**` goes down), or `-`, a path on each line of the standard
            input.

    Raises:
        DataError: when there is no such file.
    """
    if wanted == "-":
        return (line.rstrip("\n") for line in sys.stdin if line.strip())
    if os.path.isdir(wanted):
        return _below(wanted)
    if os.path.exists(wanted):
        return iter([wanted])
    if any(letter in wanted for letter in "*?["):
        return glob.iglob(wanted, recursive=True)
    raise DataError(f"input must be a file, a folder, a glob or -; there is no {shown(wanted)}")


def _below(folder: str) -> Iterator[str]:
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                    yield entry.path


def predictions(
    inference: Inference,
    paths: Iterable[str],
    view: Callable[[Tensor], Tensor],
    *,
    decoding: Decoding,
    top_k: int,
    batch_size: int,
    num_threads: int,
) -> Iterator[Prediction]:
    """Asks a net about each file, in their order; a file that cannot be read is told and does not end it.

    Args:
        inference: the net.
        paths: of the files; at most some batches of them are held at once.
        view: from a uint8 image (C, H, W) to what the net takes, or to several views of it.
        decoding: the settings by which files become pixels.
        top_k: answers of each file.
        batch_size: files that are asked about at once.
        num_threads: that decode files beside the net.
    """
    batch: list[tuple[str, Tensor | ImageError]] = []
    for item in _prepared(paths, view, decoding, num_threads, ahead=2 * batch_size):
        batch.append(item)
        if len(batch) == batch_size:
            yield from _asked(inference, batch, top_k)
            batch = []
    if batch:
        yield from _asked(inference, batch, top_k)


def _prepared(
    paths: Iterable[str], view: Callable[[Tensor], Tensor], decoding: Decoding, num_threads: int, ahead: int
) -> Iterator[tuple[str, Tensor | ImageError]]:
    """Files and their views, in order, so many of them at once."""

    def prepare(path: str) -> Tensor | ImageError:
        try:
            return view(to_tensor(decode(path, decoding)))
        except ImageError as error:
            return error

    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[tuple[str, Future[Any]]] = deque()
        for path in paths:
            waiting.append((path, pool.submit(prepare, path)))
            if len(waiting) > ahead:
                done, result = waiting.popleft()
                yield done, result.result()
        while waiting:
            done, result = waiting.popleft()
            yield done, result.result()


@torch.inference_mode()
def _asked(inference: Inference, batch: list[tuple[str, Any]], top_k: int) -> Iterator[Prediction]:
    views = [item for _, item in batch if isinstance(item, Tensor)]
    best = None
    if views:
        probs = inference.probs(torch.stack(views)).cpu()
        best = probs.topk(min(top_k, probs.shape[1]), dim=1)
    place = 0
    for path, item in batch:
        if isinstance(item, ImageError):
            yield Prediction(path, error=item)
            continue
        assert best is not None
        yield Prediction(path, tuple(best.indices[place].tolist()), tuple(best.values[place].tolist()))
        place += 1
