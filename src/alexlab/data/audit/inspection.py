"""Inspection of the files of a dataset: each is decoded completely, measured and fingerprinted."""

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
from alexlab.data.image_file import FORMATS, Decoding, read_image
from alexlab.data.listing import Finding
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
MIN_GREY_STD = 4.0  # grey levels; the hash of a flatter image is noise
MIN_FILES_FOR_POOL = 64  # fewer files take less time than starting processes


@dataclass(frozen=True)
class ImageStats:
    """Pixel statistics and perceptual fingerprint of a readable image.

    Args:
        mean: mean of the values in [0, 1], float64 (3,).
        mean_square: mean of their squares, float64 (3,).
        grey: the image shrunk to 16 x 16 grey levels, uint8 (16, 16).
        hash_bits: 64-bit difference hash (each of 8 x 8 cells brighter than its left neighbour); None for a flat image.
        animated: whether the file holds more than one image.
    """

    mean: np.ndarray
    mean_square: np.ndarray
    grey: np.ndarray
    hash_bits: int | None
    animated: bool


@dataclass(frozen=True)
class Inspection:
    """Result of inspecting one file.

    Args:
        row: manifest row of the file; size, hash, shape and mode are filled in if it is readable.
        finding: the reason why it cannot be read, or another irregularity.
        stats: pixel statistics; None if it cannot be read.
    """

    row: ManifestRow
    finding: Finding | None = None
    stats: ImageStats | None = None


def inspect_files(root: str, rows: Sequence[ManifestRow], decoding: Decoding) -> list[Inspection]:
    """Inspect all files on all cores, with a progress bar in a terminal."""
    work = [(root, row, decoding) for row in rows]
    if len(rows) < MIN_FILES_FOR_POOL:
        return [inspect_file(item) for item in track(work, "inspecting images")]
    # Not multiprocessing.Pool, which waits forever for a worker that was killed.
    pool = ProcessPoolExecutor(
        num_cores(), multiprocessing.get_context("fork"), initializer=_init_worker, initargs=(os.getpid(),)
    )
    try:
        inspections = pool.map(inspect_file, work, chunksize=16)
        return list(track(inspections, "inspecting images", len(work)))
    finally:
        pool.shutdown(cancel_futures=True)


def _init_worker(parent_pid: int) -> None:
    """Ignore Ctrl-C, which the parent process handles, and exit when the parent dies."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def inspect_file(work: tuple[str, ManifestRow, Decoding]) -> Inspection:
    """Decode and measure one file, given as (root folder of the dataset, manifest row, decoding settings)."""
    root, row, decoding = work
    path = os.path.join(root, row.path)
    try:
        content = read_image(path, decoding)
        row = replace(row, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        pixels = decode_bytes(content, decoding, path)
    except ImageError as error:
        return Inspection(row, Finding(f"unreadable_{error.code}", row.path, f"cannot be read: {error.reason}"))
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image_format, mode, num_frames = image.format or "", image.mode, _num_frames(image)
    row = replace(row, width=pixels.shape[1], height=pixels.shape[0], mode=mode)
    finding = None
    if not row.path.lower().endswith(EXTENSIONS.get(image_format, ())):
        finding = Finding("extension", row.path, f"is a {image_format} file despite its extension")
    return Inspection(row, finding, _image_stats(pixels, animated=num_frames > 1))


def _num_frames(image: Image.Image) -> int:
    """Return the number of images in a file whose first image is readable; the others may be corrupt."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # Pillow reads all frames to count them, which can raise anything that decoding can
        return 2


def _image_stats(pixels: np.ndarray, *, animated: bool) -> ImageStats:
    values = pixels.reshape(-1, 3) / np.float32(255)
    grey_image = Image.fromarray(pixels).convert("L")
    grey = np.asarray(grey_image.resize((16, 16), Image.Resampling.BOX))
    cells = np.asarray(grey_image.resize((9, 8), Image.Resampling.BOX)).astype(int)
    hash_bits = int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")
    return ImageStats(
        mean=values.mean(0, dtype=np.float64),
        mean_square=np.square(values).mean(0, dtype=np.float64),
        grey=grey,
        hash_bits=hash_bits if grey.std() >= MIN_GREY_STD else None,
        animated=animated,
    )
