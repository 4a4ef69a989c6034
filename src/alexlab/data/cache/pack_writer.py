"""Building of packs: decode every image of a listing once, on all cores, resuming an interrupted build."""

import hashlib
import json
import logging
import math
import os
import shutil
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from alexlab.data.cache.pack import PackConfig
from alexlab.data.dataset import ViewReader
from alexlab.data.decode import check_size, decode_bytes
from alexlab.data.image_file import FORMATS, Decoding, open_image, read_image, unreadable
from alexlab.data.listing import Listing
from alexlab.data.orientation import upright_size
from alexlab.distributed.hardware import num_cores
from alexlab.errors import DataError, ImageError
from alexlab.output.escape import shown
from alexlab.output.progress import progress_bar
from alexlab.records.atomic import replace_dir
from alexlab.records.disk_errors import reserve

log = logging.getLogger(__name__)

VERSION = 5
CHUNK = 32  # images per recorded step of progress
SYNC_S = 1.0  # how often progress is recorded; the pixels must be on the disk before


def file_stats(listing: Listing, rows: np.ndarray) -> np.ndarray:
    """Return size, modification time and change time (ns) of files, int64 (len(rows), 3); -1 for a missing file.

    Copying tools may restore the modification time; no tool can set the change time.
    """
    stats = np.full((len(rows), 3), -1, np.int64)
    for number, row in enumerate(rows):
        try:
            status = os.stat(os.path.join(listing.root, listing.paths[int(row)]))
        except OSError:
            continue
        stats[number] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return stats


def json_settings(decoding: Decoding) -> dict[str, Any]:
    """Return decoding settings as they look after a round trip through JSON, for comparison."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(decoding)))
    return settings


class PackWriter:
    """Writer of one pack. It fills an unfinished folder, which a later call resumes, and renames it at the end.

    Args:
        listing: image files.
        pack: size and shape of the packed images.
        decoding: decoding settings.
        path: folder of the finished pack.
        skip: continue after unreadable files.
    """

    def __init__(self, listing: Listing, pack: PackConfig, decoding: Decoding, path: Path, skip: bool) -> None:
        self.listing, self.pack, self.decoding, self.path, self.skip = listing, pack, decoding, path, skip
        self.folder = path.with_name(f"{path.name}.unfinished")

    def run(self) -> None:
        """Build the pack."""
        settings = {
            "version": VERSION,
            "root": os.path.abspath(self.listing.root),
            "files": list(self.listing.paths),
            "decoding": json_settings(self.decoding),
        }
        self._start_or_resume(settings)
        shapes = np.load(self.folder / "shapes.npy")
        bad = self._decode_all(shapes)
        index = {
            **settings,
            "folder": self.listing.folder,
            "classes": list(self.listing.classes),
            "labels": self.listing.labels.tolist(),
            "channels": self.decoding.channels,
            "size": self.pack.size,
            "resize": self.pack.resize,
            "crop": self.pack.crop,
            "shapes": None if self.pack.square else shapes.tolist(),
            "decoder": f"simplejpeg {version('simplejpeg')}, Pillow {version('pillow')}, torch {torch.__version__}",
            "bad": bad,
        }
        (self.folder / "index.json").write_text(json.dumps(index))
        for name in ("start.json", "shapes.npy", "done.bin", "bad.txt"):
            (self.folder / name).unlink(missing_ok=True)
        replace_dir(self.folder, self.path)

    def _start_or_resume(self, settings: dict[str, Any]) -> None:
        """Create the unfinished folder unless an interrupted build of the same files and settings has left it."""
        stats = file_stats(self.listing, np.arange(len(self.listing.paths)))
        start_path = self.folder / "start.json"
        resumes = start_path.is_file() and json.loads(start_path.read_text()) == settings
        if resumes and np.array_equal(np.load(self.folder / "stats.npy"), stats):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        shapes = self._shapes()
        self._allocate(shapes)
        np.save(self.folder / "hashes.npy", np.zeros((len(self.listing.paths), 32), np.uint8))
        np.save(self.folder / "shapes.npy", shapes)
        np.save(self.folder / "stats.npy", stats)
        start_path.write_text(json.dumps(settings))

    def _shapes(self) -> np.ndarray:
        """Return height and width of each packed image, int64 (N, 2), 0 for unreadable ones; (0, 2) for square images."""
        if self.pack.square:
            return np.zeros((0, 2), np.int64)
        shapes = np.zeros((len(self.listing.paths), 2), np.int64)
        for row, relative in enumerate(self.listing.paths):
            path = os.path.join(self.listing.root, relative)
            try:
                with open_image(path, self.decoding) as file, Image.open(file, formats=FORMATS) as image:
                    check_size(path, image, self.decoding)
                    shapes[row] = self.pack.shape(*upright_size(image))
            except Exception as error:
                if getattr(error, "code", None) == "not_read":
                    raise
                if getattr(error, "errno", None) is not None:
                    raise unreadable(path, "not_read", str(error)) from error
                # Other reasons are reported when the file is decoded.
        return shapes

    def _allocate(self, shapes: np.ndarray) -> None:
        """Allocate the whole image file, so that a full disk is an error now and not a SIGBUS halfway through.

        Raises:
            DataError: if the disk is too small.
        """
        if self.pack.square:
            size = self.pack.size or 0
            shape: tuple[int, ...] = (len(self.listing.paths), size, size, self.decoding.channels)
        else:
            shape = (int(shapes.prod(1).sum()) * self.decoding.channels,)
        num_bytes = math.prod(shape)
        free = shutil.disk_usage(self.folder).free
        log.info(
            "packing %s images of %s: %.2f GB in %s, %.1f GB free",
            f"{len(self.listing.paths):,}",
            shown(self.listing.root),
            num_bytes / 1e9,
            self.path,
            free / 1e9,
        )
        if num_bytes > free:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise DataError(
                f"a pack of {num_bytes / 1e9:.2f} GB does not fit into {self.path.parent}, where {free / 1e9:.2f} GB are free; "
                "use another data.cache_dir or a smaller data.pack.size"
            )
        path = self.folder / "images.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        reserve(path)

    def _decode_all(self, shapes: np.ndarray) -> dict[int, tuple[str, str]]:
        """Decode the chunks that are not yet done, on all cores, and return code and detail of unreadable files by row."""
        count = len(self.listing.paths)
        done_path, bad_path = self.folder / "done.bin", self.folder / "bad.txt"
        done = {int(number) for number in done_path.read_text().split()} if done_path.exists() else set()
        bad = dict(json.loads(line) for line in bad_path.read_text().splitlines()) if bad_path.exists() else {}
        pending = [number for number in range(-(-count // CHUNK)) if number not in done]
        if done and pending:
            log.info("resuming the packing of %s: %d of %d images are done", self.path, len(done) * CHUNK, count)
        chunks = _Chunks(self.listing, self.pack, self.decoding, self.folder, shapes)
        num_workers = min(num_cores(), len(pending))
        loader: Any = DataLoader(
            chunks,
            batch_size=None,
            sampler=pending,
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
        )
        with progress_bar() as bar, done_path.open("a") as done_file, bad_path.open("a") as bad_file:
            waiting: list[int] = []

            def record() -> None:
                """Record the chunks since the last call, after their pixels and hashes are on the disk."""
                for name in ("images.npy", "hashes.npy"):
                    with (self.folder / name).open("r+b") as file:
                        os.fsync(file.fileno())
                done_file.write("".join(f"{number}\n" for number in waiting))
                done_file.flush()
                waiting.clear()

            synced_s = -math.inf
            task = bar.add_task("packing", total=count, completed=len(done) * CHUNK)
            try:
                for number, errors in loader:
                    for row, error in errors:
                        if not self.skip or error.code == "not_read":
                            raise error
                        bad[row] = error.code, error.detail
                        bad_file.write(json.dumps([row, [error.code, error.detail]]) + "\n")
                        bad_file.flush()
                    waiting.append(number)
                    if time.monotonic() - synced_s > SYNC_S:
                        record()
                        synced_s = time.monotonic()
                    bar.advance(task, CHUNK)
            finally:
                record()
        return bad


class _Chunks(Dataset[tuple[int, list[tuple[int, ImageError]]]]):
    """Chunks of images. Indexing decodes a chunk into the files of `folder` and returns (number, [(row, error)])."""

    def __init__(
        self, listing: Listing, pack: PackConfig, decoding: Decoding, folder: Path, shapes: np.ndarray
    ) -> None:
        self.listing, self.pack, self.decoding, self.folder, self.shapes = listing, pack, decoding, folder, shapes
        self.starts = np.concatenate([[0], np.cumsum(shapes.prod(1) * decoding.channels)])
        self.read = ViewReader(pack.view(), decoding)
        self.files: tuple[np.ndarray, np.ndarray] | None = None  # pixels and hashes, opened by each loader worker

    def __getitem__(self, number: int) -> tuple[int, list[tuple[int, ImageError]]]:
        if self.files is None:
            self.files = np.load(self.folder / "images.npy", "r+"), np.load(self.folder / "hashes.npy", "r+")
        pixels, hashes = self.files
        errors = []
        for row in range(number * CHUNK, min(len(self.listing.paths), (number + 1) * CHUNK)):
            path = os.path.join(self.listing.root, self.listing.paths[row])
            try:
                content = read_image(path, self.decoding)
                hashes[row] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
                packed = self.read(partial(decode_bytes, content, path=path)).permute(1, 2, 0).numpy()
            except ImageError as error:
                errors.append((row, error))
                continue
            if self.pack.square:
                pixels[row] = packed
            else:
                assert packed.shape[:2] == tuple(self.shapes[row])
                pixels[self.starts[row] : self.starts[row + 1]] = packed.reshape(-1)
        return number, errors
