"""Opening of packs: built if missing, shared between processes, rejected once the files have changed."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from alexlab.data.cache.pack import PackConfig, PackedImages, pack_path
from alexlab.data.cache.pack_writer import VERSION, PackWriter, file_stats, json_settings
from alexlab.data.decode import decode
from alexlab.data.image_file import Decoding
from alexlab.data.listing import Listing
from alexlab.data.spacing import evenly_spaced
from alexlab.errors import DataError, ImageError
from alexlab.output.escape import shown
from alexlab.records.disk_errors import disk_errors
from alexlab.records.lock import try_lock

log = logging.getLogger(__name__)

MAX_STATS = 100_000  # files that are checked for changes; evenly spaced in larger folders
ENVIRONMENT = ("no_permission", "no_decoder")  # reasons why a file is unreadable that can change without the file
MAX_RETRIES = 10  # files that are read again for that


def open_pack(
    listing: Listing,
    pack: PackConfig,
    *,
    decoding: Decoding,
    cache_dir: Path,
    hashes: np.ndarray | None = None,
    skip: bool = False,
    replace: bool = False,
) -> PackedImages:
    """Return the pack of a listing, building it first if it does not exist. Other processes wait for it.

    Args:
        listing: image files.
        pack: size and shape of the packed images; its size must be given.
        decoding: decoding settings.
        cache_dir: folder of all packs.
        hashes: required SHA-256 of each file, uint8 (N, 32); zeros, or None for all files, to accept any content.
        skip: continue after unreadable files; their items raise ImageError.
        replace: rebuild a pack whose files have changed.

    Raises:
        DataError: if the files have changed since they were packed, the disk is too small, or a file is unreadable or does not
            have the required hash.
    """
    path = pack_path(cache_dir, listing.root, listing.folder, pack, decoding.channels)
    with disk_errors(path), _locked(path.with_name(f"{path.name}.lock"), path):
        exists = path.is_dir()
        change = _find_change(path, listing, decoding) if exists else None
        if change is not None and not replace:
            raise DataError(
                f"the pack of {shown(listing.root)} cannot be used: {change}. To pack the images again, remove the folder "
                f"{shown(path)}"
            )
        if change is not None or not exists:
            PackWriter(listing, pack, decoding, path, skip).run()
        images = PackedImages(path, hashes)
    if images.bad and not skip:
        raise images.bad[min(images.bad)]
    return images


@contextmanager
def _locked(lock_path: Path, path: Path) -> Iterator[None]:
    """Hold a lock that the kernel releases when the process ends for any reason. A pack in a read-only folder needs none."""
    if path.is_dir() and not os.access(lock_path if lock_path.exists() else lock_path.parent, os.W_OK):
        yield
        return
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with lock_path.open("a+") as file:
        if not try_lock(file):
            file.seek(0)
            log.info("waiting for process %s, which is packing %s", file.read().strip() or "?", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _find_change(path: Path, listing: Listing, decoding: Decoding) -> str | None:
    """Return how the files or settings differ from those of a pack, or None."""
    index = json.loads((path / "index.json").read_text())
    if index["version"] != VERSION:
        return "it was packed by another version of alexlab"
    if index["decoding"] != json_settings(decoding):
        return "it was packed with other values of data.max_megapixels, data.intensity_range or data.jpeg_scaling"
    if index["files"] != list(listing.paths):
        before, now = set(index["files"]), set(listing.paths)
        changes = [
            f"{len(names)} {change}, such as {shown(min(names))}"
            for names, change in ((now - before, "new"), (before - now, "deleted"))
            if names
        ]
        return " and ".join(changes) or "the files are in another order"
    rows = np.array(evenly_spaced(len(listing.paths), MAX_STATS), int)
    bad = [int(row) for row, (code, _) in index["bad"].items() if code in ENVIRONMENT]
    if readable := [row for row in bad[:MAX_RETRIES] if _is_readable(listing, row, decoding)]:
        return f"{shown(listing.paths[readable[0]])} was unreadable and can be read now"
    modified = rows[(file_stats(listing, rows) != np.load(path / "stats.npy")[rows]).any(1)]
    return f"{len(modified)} modified, such as {shown(listing.paths[int(modified[0])])}" if len(modified) else None


def _is_readable(listing: Listing, row: int, decoding: Decoding) -> bool:
    try:
        decode(os.path.join(listing.root, listing.paths[row]), decoding)
    except ImageError:
        return False
    return True
