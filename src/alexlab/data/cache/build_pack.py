"""Makes packs: decodes every image of a listing once, on all cores, and notices when the files have changed."""

import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from alexlab.data.cache.pack import PackConfig, PackedImages, pack_path
from alexlab.data.dataset import to_tensor
from alexlab.data.decode import check_size, decode, upright_size
from alexlab.data.image_file import FORMATS, Decoding, open_image
from alexlab.data.listing import Listing
from alexlab.distributed.hardware import num_cores
from alexlab.errors import DataError, ImageError
from alexlab.output.escape import shown
from alexlab.output.progress import progress_bar
from alexlab.runs.atomic import disk_errors

log = logging.getLogger(__name__)

VERSION = 2
CHUNK = 32  # images between two marks of progress
MAX_STATS = 100_000  # of a larger folder, so many files are looked at, evenly spaced, to see whether it has changed


def open_pack(
    listing: Listing,
    pack: PackConfig,
    *,
    decoding: Decoding,
    cache_dir: Path,
    hashes: np.ndarray | None = None,
    skip: bool = False,
    anew: bool = False,
) -> PackedImages:
    """The pack of a listing; made first where there is none. A second process that wants it waits.

    Args:
        listing: the files.
        pack: how they are kept; its size is given.
        decoding: the settings by which files become pixels.
        cache_dir: where packs are kept.
        hashes: uint8 (N, 32), the SHA-256 that each file must have.
        skip: go on when a file cannot be read; its item is then an ImageError.
        anew: replace a pack of files that have changed.

    Raises:
        DataError: when the folder has changed since it was packed, the disk is too small, or a file cannot be read.
    """
    place = pack_path(cache_dir, listing.root, listing.folder, pack, decoding.channels)
    with disk_errors(place), _locked(place.with_name(f"{place.name}.lock"), place):
        if place.is_dir():
            change = _change(place, listing, decoding, hashes)
            if change is None:
                found = PackedImages(place)
                if found.bad and not skip:
                    raise found.bad[min(found.bad)]
                return found
            if not anew:
                raise DataError(
                    f"{shown(listing.root)} has changed since it was packed: {change}. "
                    f"python src/prepare.py action=pack data.root={shown(listing.root)} packs it anew"
                )
        _Writer(listing, pack, decoding, place, hashes, skip).run()
    return PackedImages(place)


@contextmanager
def _locked(path: Path, place: Path) -> Iterator[None]:
    """Holds a lock that the system gives back when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            log.info("waiting for process %s, which is packing %s", file.read().strip() or "?", place)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _stats(listing: Listing, rows: np.ndarray) -> np.ndarray:
    """Size, time of modification and time of change of files, int64 (len(rows), 3); -1 for one that is not there.

    Copying tools may restore the modification time; no tool can set the change time.
    """
    found = np.full((len(rows), 3), -1, np.int64)
    for number, row in enumerate(rows):
        try:
            status = os.stat(os.path.join(listing.root, listing.paths[int(row)]))
        except OSError:
            continue
        found[number] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return found


def _change(place: Path, listing: Listing, decoding: Decoding, hashes: np.ndarray | None) -> str | None:
    """What has changed between a pack and the files, or None."""
    about = json.loads((place / "index.json").read_text())
    if about["version"] != VERSION:
        return "its pack was made by another version of this program"
    if about["decoding"] != _plain(decoding):
        return "its pack was made with other values of data.max_megapixels or data.intensity_range"
    if hashes is not None and about["sha256"] != _digest(hashes):
        return "its pack was not made with this manifest"
    if about["files"] != list(listing.paths):
        before, now = set(about["files"]), set(listing.paths)
        parts = [
            f"{len(names)} files {what}, such as {shown(min(names))}"
            for names, what in ((now - before, "new"), (before - now, "gone"))
            if names
        ]
        return " and ".join(parts) or "the order of the files"
    rows = np.unique(np.linspace(0, len(listing.paths) - 1, min(len(listing.paths), MAX_STATS)).round().astype(int))
    differ = rows[(_stats(listing, rows) != np.load(place / "stats.npy")[rows]).any(1)]
    return (
        f"{len(differ)} files are not what they were, such as {shown(listing.paths[int(differ[0])])}"
        if len(differ)
        else None
    )


def _plain(decoding: Decoding) -> dict[str, Any]:
    """Return the settings as JSON gives them back, to compare with."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(decoding)))
    return found


def _digest(hashes: np.ndarray | None) -> str | None:
    """One hash of all."""
    return None if hashes is None else hashlib.sha256(hashes.tobytes()).hexdigest()


class _Writer:
    """Writes one pack into an unfinished folder, which takes its name at the end; a killed one is taken up again."""

    def __init__(
        self, listing: Listing, pack: PackConfig, decoding: Decoding, place: Path, hashes: np.ndarray | None, skip: bool
    ) -> None:
        self.listing, self.pack, self.decoding, self.place = listing, pack, decoding, place
        self.hashes, self.skip = hashes, skip
        self.folder = place.with_name(f"{place.name}.unfinished")

    def run(self) -> None:
        stats = _stats(self.listing, np.arange(len(self.listing.paths)))
        start = {
            "version": VERSION,
            "root": os.path.abspath(self.listing.root),
            "files": list(self.listing.paths),
            "sha256": _digest(self.hashes),
            "decoding": _plain(self.decoding),
        }
        progress = self.folder / "start.json"
        begun = progress.is_file() and json.loads(progress.read_text()) == start
        if not (begun and np.array_equal(np.load(self.folder / "stats.npy"), stats)):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            shapes = self._shapes()
            self._allocate(shapes)
            np.save(self.folder / "shapes.npy", shapes)
            np.save(self.folder / "stats.npy", stats)
            progress.write_text(json.dumps(start))
        shapes = np.load(self.folder / "shapes.npy")
        bad = self._write(shapes)
        about = {
            **start,
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
        (self.folder / "index.json").write_text(json.dumps(about))
        for name in ("start.json", "shapes.npy", "done.bin", "bad.txt"):
            (self.folder / name).unlink(missing_ok=True)
        if self.place.exists():
            shutil.rmtree(self.place)
        os.rename(self.folder, self.place)

    def _shapes(self) -> np.ndarray:
        """Height and width of what will be kept of each image; 0 for one that cannot be read."""
        if self.pack.square:
            return np.zeros((0, 2), np.int64)
        found = np.zeros((len(self.listing.paths), 2), np.int64)
        for row, path in enumerate(self.listing.paths):
            try:
                whole = os.path.join(self.listing.root, path)
                with open_image(whole, self.decoding) as file, Image.open(file, formats=FORMATS) as image:
                    check_size(whole, image, self.decoding)
                    found[row] = self.pack.shape(*upright_size(image))
            except Exception:  # told when it is decoded
                continue
        return found

    def _allocate(self, shapes: np.ndarray) -> None:
        """Makes the file at its whole size: a full disk is told now, not by a signal in the middle."""
        count = len(self.listing.paths)
        size = self.pack.size or 0
        whole = (int(shapes.prod(1).sum()) * self.decoding.channels,)
        shape = (count, size, size, self.decoding.channels) if self.pack.square else whole
        num_bytes = math.prod(shape)
        free = shutil.disk_usage(self.folder).free
        log.info(
            "packing %s images of %s: %.2f GB in %s, %.1f GB free",
            f"{count:,}",
            shown(self.listing.root),
            num_bytes / 1e9,
            self.place,
            free / 1e9,
        )
        if num_bytes > free:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise DataError(
                f"a pack of {num_bytes / 1e9:.2f} GB needs room in {self.place.parent}; {free / 1e9:.2f} GB are free: "
                "take data.cache_dir= on another disk or a smaller data.pack.size"
            )
        path = self.folder / "images.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)

    def _write(self, shapes: np.ndarray) -> dict[int, tuple[str, str]]:
        """Decodes all chunks that are not yet done, on all cores, with a progress bar in a terminal."""
        count = len(self.listing.paths)
        marks, bad_path = self.folder / "done.bin", self.folder / "bad.txt"
        done = {int(number) for number in marks.read_text().split()} if marks.exists() else set()
        bad = dict(json.loads(line) for line in bad_path.read_text().splitlines()) if bad_path.exists() else {}
        pending = [number for number in range(-(-count // CHUNK)) if number not in done]
        if done and pending:
            log.info("going on with the packing of %s: %d of %d images are done", self.place, len(done) * CHUNK, count)
        chunks = _Chunks(self.listing, self.pack, self.decoding, self.folder / "images.npy", shapes, self.hashes)
        workers = min(num_cores(), len(pending))
        loader: Any = DataLoader(
            chunks,
            batch_size=None,
            sampler=pending,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        with (
            progress_bar() as bar,
            marks.open("a") as mark,
            bad_path.open("a") as bads,
        ):
            task = bar.add_task("packing", total=count, completed=len(done) * CHUNK)
            for number, found in loader:
                for row, error in found:
                    if not self.skip:
                        raise error
                    bad[row] = error.code, error.detail
                    bads.write(json.dumps([row, [error.code, error.detail]]) + "\n")
                    bads.flush()
                mark.write(f"{number}\n")
                mark.flush()
                bar.advance(task, CHUNK)
        with (self.folder / "images.npy").open("r+b") as file:
            os.fsync(file.fileno())
        return bad


class _Chunks(Dataset[tuple[int, list[tuple[int, ImageError]]]]):
    """Decodes a chunk of images into the file, in a loader process; an item tells which of them could not be read."""

    def __init__(
        self,
        listing: Listing,
        pack: PackConfig,
        decoding: Decoding,
        path: Path,
        shapes: np.ndarray,
        hashes: np.ndarray | None,
    ) -> None:
        self.listing, self.pack, self.decoding, self.path = listing, pack, decoding, path
        self.shapes, self.hashes = shapes, hashes
        self.starts = np.concatenate([[0], np.cumsum(shapes.prod(1) * decoding.channels)])
        self.view = pack.view()
        self.pixels: np.ndarray | None = None

    def __getitem__(self, number: int) -> tuple[int, list[tuple[int, ImageError]]]:
        if self.pixels is None:
            self.pixels = np.load(self.path, mmap_mode="r+")
        bad = []
        for row in range(number * CHUNK, min(len(self.listing.paths), (number + 1) * CHUNK)):
            try:
                sha256 = None if self.hashes is None else self.hashes[row].tobytes()
                image = decode(os.path.join(self.listing.root, self.listing.paths[row]), self.decoding, sha256)
            except ImageError as error:
                bad.append((row, error))
                continue
            kept = self.view(to_tensor(image)).permute(1, 2, 0).numpy()
            if self.pack.square:
                self.pixels[row] = kept
            else:
                assert kept.shape[:2] == tuple(self.shapes[row])
                self.pixels[self.starts[row] : self.starts[row + 1]] = kept.reshape(-1)
        return number, bad
