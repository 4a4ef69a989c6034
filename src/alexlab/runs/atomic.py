"""Files written whole or not at all, and a disk that takes no more as one sentence. Imports no torch."""

import errno
import logging
import multiprocessing.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from alexlab.errors import ConfigError, DiskError

log = logging.getLogger(__name__)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENXIO, errno.EACCES, errno.EPERM})
MAX_SOCKET_PATH = 107  # bytes; `sun_path` of <sys/un.h> without its end
SOCKET_PATH = "/pymp-12345678/listener-12345678"  # what multiprocessing puts below the temporary folder
ROOM = 256_000  # bytes; what Hydra, the record and the list of the layers write before the first step fits in it


def disk_error(error: OSError, path: Path) -> DiskError | None:
    """Return the sentence for an error of a file system, or None for another kind of error.

    Args:
        error: what the system said; it names its own path only when a file could not be opened.
        path: the file or the folder that was being written.
    """
    number, reason = error.errno, error.strerror
    name = error.filename2 or error.filename  # of a copy, the target is the second
    if number is None:
        # A loader process passes on the text only. NumPy has no number for a disk that takes less than it was given.
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
    """Raise DiskError for an error of the file system while `path` is written."""
    try:
        yield
    except OSError as error:
        found = disk_error(error, path)
        if found is None:
            raise
        raise found from error


class RunFileWriter:
    """Mixin for objects that write into the run folder; a full disk stops the run unless `continue_on_full_disk` is set."""

    continue_on_full_disk = False
    failed = False  # whether the last attempt to write found the disk full

    @contextmanager
    def writing(self, path: Path, *, ending: bool = False) -> Iterator[None]:
        """Raise or log DiskError while `path` is written.

        Args:
            path: of the file.
            ending: whether another error ends the run already, which a full disk must not hide.
        """
        self.failed = False
        try:
            with disk_errors(path):
                yield
        except DiskError as error:
            self.failed = True
            if not self.continue_on_full_disk and not ending:
                raise
            log.error("%s%s", error, "" if ending else "; the run goes on")


def write_atomic(path: Path, content: bytes | memoryview | Callable[[BinaryIO], None], *, size: int = 0) -> None:
    """Write a file whole or not at all, and return only when it is on the disk.

    Args:
        path: of the file.
        content: its bytes, or a function that writes them to an open file.
        size: of the file, in bytes, for the message of an error where `content` is a function.

    Raises:
        DiskError: with the path and the free space; what was there before is still there.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    if not callable(content):
        size = len(content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                if callable(content):
                    _call(content, file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # of the new name
        finally:
            os.close(folder)
    except OSError as error:
        raise DiskError(
            f"cannot write {path}, {size / 1e6:.1f} MB: {error.strerror}; {free_space(path.parent)}; what was there is kept"
        ) from error


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Gives a folder to write into, which takes its name when all is done, and vanishes when something fails.

    Where another process has written the target in the meantime, that one stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        try:
            os.rename(unfinished, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _call(write: Callable[[BinaryIO], None], file: BinaryIO) -> None:
    try:
        write(file)
    except RuntimeError as error:
        # torch.save closes its archive after an error of the file, and that fails with an error of its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def check_room(folder: Path) -> None:
    """Write a small file and remove it: a full disk is reported before anything is begun.

    Raises:
        DiskError: when there is no room for what every command writes.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".room.") as file:
            file.write(os.urandom(ROOM))  # of zeros a file system with compression would keep nothing
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(f"cannot write {folder}: {error.strerror}; {free_space(folder)}") from error


def short_socket_paths() -> None:
    """Give multiprocessing a folder for its sockets when the path of the temporary folder is too long for one.

    Loader processes pass their tensors through such sockets; without them the first batch never comes.

    Raises:
        DiskError: when there is no temporary folder.
        ConfigError: when none is short enough.
    """
    try:
        own = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise DiskError(
            f"a temporary folder must be writable and have room: {error.strerror}; TMPDIR names one"
        ) from error
    if len(os.fsencode(own + SOCKET_PATH)) <= MAX_SOCKET_PATH:
        return
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        tempfile.tempdir = folder
        try:
            multiprocessing.util.get_temp_dir()  # made now, kept by forked processes, removed at exit
            return
        except OSError:
            continue
        finally:
            tempfile.tempdir = own
    raise ConfigError(
        f"TMPDIR must have at most {MAX_SOCKET_PATH - len(SOCKET_PATH)} bytes where neither /tmp nor /var/tmp is writable; "
        f"got {own}"
    )
