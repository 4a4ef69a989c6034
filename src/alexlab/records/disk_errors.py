"""Errors of full, read-only or broken disks, as one sentence with the free space."""

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alexlab.errors import ConfigError, DiskError

log = logging.getLogger(__name__)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENXIO, errno.EACCES, errno.EPERM})
MIN_FREE_BYTES = 256_000  # more than Hydra, the run record and the layer table write before the first step


def disk_error(error: OSError, path: Path) -> DiskError | None:
    """Return the DiskError for an error of the file system, or None for other errors.

    Args:
        error: error of the operating system; it names a path only if a file could not be opened.
        path: file or folder that was being written.
    """
    number, reason = error.errno, error.strerror
    name = error.filename2 or error.filename  # the target, if a file was being copied
    if number is None:
        # Loader workers pass on only the text of an error. NumPy sets no errno for a partial write.
        found = re.findall(r"\[Errno (\d+)\] ([^:\n]+)(?:: '([^'\n]*)')?", str(error))
        if found:
            number, reason, name = int(found[-1][0]), found[-1][1], found[-1][2] or None
        elif re.search(r"\d+ requested and \d+ written", str(error)):
            number, reason = errno.ENOSPC, os.strerror(errno.ENOSPC)
    if isinstance(name, str | bytes):
        path = Path(os.fsdecode(name))
    if number in FULL:
        return DiskError(f"cannot write {path}: {reason}; {free_space(path)}")
    if number in BROKEN:
        return DiskError(f"cannot read or write {path}: {reason}")
    return None


def free_space(path: Path) -> str:
    """Return the free space on the disk of a file, which need not exist, as text for a message."""
    folder = next((folder for folder in (path, *path.absolute().parents) if folder.is_dir()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free in {folder}"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise errors of the file system as DiskError while `path` is written."""
    try:
        yield
    except OSError as error:
        translated = disk_error(error, path)
        if translated is None:
            raise
        raise translated from error


class RunFileWriter:
    """Mixin for objects that write into the run folder. A full disk stops the run unless `continue_on_full_disk` is set."""

    continue_on_full_disk = False
    failed = False  # the last write found the disk full

    @contextmanager
    def writing(self, path: Path, *, ending: bool = False) -> Iterator[None]:
        """Raise or log errors of the file system while `path` is written.

        Args:
            path: file or folder that is written.
            ending: true if the run already ends with another error, which a full disk must not hide.
        """
        self.failed = False
        try:
            with disk_errors(path):
                yield
        except DiskError as error:
            self.failed = True
            if not self.continue_on_full_disk and not ending:
                raise
            log.error("%s%s", error, "" if ending else "; the run continues")


def reserve(path: Path) -> None:
    """Allocate the disk space of a sparse file, which otherwise raises SIGBUS when a mapped page does not fit on the disk.

    macOS has no such call; there a full disk ends the process.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def make_out_dir(folder: Path) -> None:
    """Create the folder of `out=`.

    Raises:
        ConfigError: if a file has its name or that of a parent.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"out must be a folder; {folder} cannot be one: {error.strerror}") from error


def check_free_space(folder: Path) -> None:
    """Write and remove a small file, so that a full disk is reported before any work is done.

    Raises:
        DiskError: if the disk has no room for what every command writes.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".room.") as file:
            file.write(os.urandom(MIN_FREE_BYTES))  # zeros would take no space on a compressing file system
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(f"cannot write {folder}: {error.strerror}; {free_space(folder)}") from error
