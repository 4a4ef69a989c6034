"""What one file of a data set is: decoded fully, measured, and made comparable with others. Imports no torch."""

import hashlib
import io
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from alexlab.data.decode import decode_bytes
from alexlab.data.image_file import FORMATS, Decoding, read
from alexlab.data.listing import Problem
from alexlab.data.manifest import ManifestRow
from alexlab.distributed.hardware import die_with_parent, num_cores
from alexlab.errors import ImageError
from alexlab.output.progress import track

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "MPO": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
MIN_SPREAD = 4.0  # of grey values; the hash of a flat picture says nothing
FEW = 64  # files that are not worth starting processes for


@dataclass(frozen=True)
class Picture:
    """What was measured of a readable file.

    Args:
        mean, square: of its values in [0, 1] and of their squares, for each of three channels.
        grey: uint8 (16, 16), the picture shrunk.
        bits: 64 bits, whether each of 8 x 8 places is brighter than the one to its left; None for a flat picture.
        animated: whether there is more than one picture in it.
    """

    mean: np.ndarray
    square: np.ndarray
    grey: np.ndarray
    bits: int | None
    animated: bool


@dataclass(frozen=True)
class Seen:
    """What one file was found to be.

    Args:
        row: the file, with what is known of it.
        problem: why it cannot be read, or what is odd about it.
        picture: None when it cannot be read.
    """

    row: ManifestRow
    problem: Problem | None = None
    picture: Picture | None = None


def look_at(root: str, rows: Sequence[ManifestRow], decoding: Decoding) -> list[Seen]:
    """Decodes every file, in as many processes as there are cores, with a progress bar in a terminal."""
    work = [(root, row, decoding) for row in rows]
    if len(rows) < FEW:
        return [look(one) for one in track(work, "looking at the images")]
    # Not multiprocessing.Pool, which waits for ever for a process that was killed.
    pool = ProcessPoolExecutor(
        num_cores(), multiprocessing.get_context("fork"), initializer=_begin, initargs=(os.getpid(),)
    )
    try:
        found = pool.map(look, work, chunksize=16)
        return list(track(found, "looking at the images", len(work)))
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def look(work: tuple[str, ManifestRow, Decoding]) -> Seen:
    """Decode one file: the data set's folder, the file in it, and the settings."""
    root, row, decoding = work
    path = os.path.join(root, row.path)
    try:
        content = read(path, decoding)
        row = replace(row, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        pixels = decode_bytes(content, decoding, path)
    except ImageError as error:
        return Seen(row, Problem(f"unreadable_{error.code}", row.path, f"cannot be read: {error.reason}"))
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        kind, mode, frames = image.format or "", image.mode, _num_frames(image)
    row = replace(row, width=pixels.shape[1], height=pixels.shape[0], mode=mode)
    odd = not row.path.lower().endswith(EXTENSIONS.get(kind, ()))
    problem = Problem("extension", row.path, f"is a {kind} file, whatever its name says") if odd else None
    return Seen(row, problem, _measured(pixels, animated=frames > 1))


def _num_frames(image: Image.Image) -> int:
    """Return the number of pictures in a file whose first one can be read; those behind it may be broken."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # Pillow reads all of them to count them, which fails in as many ways as decoding
        return 2


def _measured(pixels: np.ndarray, *, animated: bool) -> Picture:
    values = pixels.reshape(-1, 3) / np.float32(255)
    whole = Image.fromarray(pixels).convert("L")
    grey = np.asarray(whole.resize((16, 16), Image.Resampling.BOX))
    steps = np.asarray(whole.resize((9, 8), Image.Resampling.BOX)).astype(int)
    bits = int.from_bytes(np.packbits(steps[:, 1:] > steps[:, :-1]).tobytes(), "big")
    return Picture(
        mean=values.mean(0, dtype=np.float64),
        square=np.square(values).mean(0, dtype=np.float64),
        grey=grey,
        bits=bits if grey.std() >= MIN_SPREAD else None,
        animated=animated,
    )
