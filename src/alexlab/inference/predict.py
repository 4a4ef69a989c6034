"""What a trained net says of files that nobody has labelled: one after the other, some batches at a time."""

import codecs
import glob
import io
import logging
import os
import re
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from alexlab.data.dataset import to_tensor
from alexlab.data.decode import decode
from alexlab.data.hidden_names import is_hidden
from alexlab.data.image_file import Decoding
from alexlab.data.listing import IMAGE_EXTENSIONS, SPECIAL_FILES, file_type
from alexlab.errors import DataError, ImageError
from alexlab.output.escape import shown
from alexlab.training.preprocessing import Inference

log = logging.getLogger(__name__)


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
    """Yield the files that a word names, sorted, or in the order of the list; the names of one folder are held at a time.

    Args:
        wanted: a file, a folder (the images below it), a glob (`**` goes down; of a folder that it names the images below),
            or `-`, a path on each line of the standard input, see `listed_files`.

    Raises:
        DataError: if there is no such file.
    """
    if wanted == "-":
        if sys.stdin is None:
            raise DataError("input=- reads a list from the standard input, which is closed")
        return listed_files(cast(io.BufferedReader, sys.stdin.buffer))
    if os.path.isdir(wanted):
        return _below(wanted, set())
    if os.path.exists(wanted):
        return iter([wanted])
    if any(letter in wanted for letter in "*?["):
        return _matching(wanted)
    whole = "" if os.path.isabs(wanted) else f" (looked for {shown(os.path.abspath(wanted))})"
    raise DataError(f"input must be a file, a folder, a glob or -; there is no {shown(wanted)}{whole}")


def listed_files(stream: io.BufferedReader) -> Iterator[str]:
    """Yield the paths of a list as they arrive: one a line, or closed by zero bytes as `find -print0` does.

    A byte order mark is skipped, and UTF-16, which PowerShell writes, is decoded.
    """
    rest, end = b"", b""
    while chunk := stream.read1(1 << 16):
        rest += chunk
        if not end:
            encoding = _wide_encoding(rest)
            if encoding:
                lines = (rest + stream.read()).decode(encoding, "replace").lstrip("\ufeff").split("\n")
                yield from filter(None, (line.rstrip("\r") for line in lines))
                return
            rest = rest.removeprefix(codecs.BOM_UTF8)
            end = b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b""
        if end:
            *paths, rest = rest.split(end)
            yield from _decoded(paths, end)
    yield from _decoded([rest], end)


def _wide_encoding(start: bytes) -> str | None:
    """Return the name of UTF-16 for a text that begins so: with its mark, or with two letters of ASCII."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if start[1:2] == start[3:4] == b"\0" and start[0] and start[2]:
        return "utf-16-le"
    return "utf-16-be" if start[0:1] == start[2:3] == b"\0" and start[1] and start[3] else None


def _decoded(paths: Iterable[bytes], end: bytes) -> Iterator[str]:
    for path in paths:
        path = path if end == b"\0" else path.removesuffix(b"\r")
        if path.strip():
            yield os.fsdecode(path)


def _matching(pattern: str) -> Iterator[str]:
    deep, visited = "**" in pattern, set[tuple[int, int]]()
    typed = len(re.split(r"[*?\[]", pattern)[0].rpartition("/")[0])
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if any(map(is_hidden, path[typed:].split("/"))):
            continue
        if not os.path.isdir(path):
            yield path
        elif not deep:
            yield from _below(path, visited)


def _below(top: str, visited: set[tuple[int, int]]) -> Iterator[str]:
    """Yield the images below a folder in the order of their paths; links to folders are followed, but into each one once."""
    pending = [(top, stat.S_IFDIR)]
    while pending:
        path, kind = pending.pop()
        if kind == stat.S_IFDIR:
            pending += reversed(_entries(path, visited))
        elif not path.lower().endswith(IMAGE_EXTENSIONS):
            continue
        elif kind == stat.S_IFREG:
            yield path
        else:
            what = SPECIAL_FILES.get(kind, "no regular file")
            log.warning("%s is left out: it is %s, and only regular files are read", shown(path), what)


def _entries(folder: str, visited: set[tuple[int, int]]) -> list[tuple[str, int]]:
    """Return the paths and kinds of what a folder holds, as they stand in the sorted list of all paths below it."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            log.warning("%s is left out: it leads to a folder that was already read", shown(folder))
            return []
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            found = [(entry.path, file_type(entry)) for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        log.warning("%s is left out: %s", shown(folder), error.strerror)
        return []
    return sorted(found, key=lambda one: f"{one[0]}/" if one[1] == stat.S_IFDIR else one[0])  # a-b.jpg, a/1.jpg, a0.jpg


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
