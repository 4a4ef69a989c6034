"""Files and folders that are written completely or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from alexlab.errors import DiskError
from alexlab.records.disk_errors import free_space


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the same folder. It replaces `path` on success and is removed on failure."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`. It is renamed to `path` on success and removed on failure.

    If another process has created `path` in the meantime, that folder is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)
        try:
            os.rename(partial, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_dir(source: Path, path: Path) -> None:
    """Rename a finished folder to `path`, whose old content is removed."""
    if path.exists():
        shutil.rmtree(path)
    os.rename(source, path)


def write_atomic(path: Path, content: bytes | memoryview | Callable[[BinaryIO], None], *, size: int = 0) -> None:
    """Write a file completely or not at all, and return once it is on the disk (fsync).

    Args:
        path: path of the file; its folder is created.
        content: bytes, or a function that writes them to an open file.
        size: file size in bytes for the error message, if `content` is a function.

    Raises:
        DiskError: with the path and the free space; an older file is kept.
    """
    if not callable(content):
        size = len(content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial, partial.open("wb") as file:
            if callable(content):
                _call(content, file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename durable
        finally:
            os.close(folder)
    except OSError as error:
        kept = "; the old file is kept" if path.exists() else ""
        raise DiskError(
            f"cannot write {path}, {size / 1e6:.1f} MB: {error.strerror}; {free_space(path.parent)}{kept}"
        ) from error


def _call(write: Callable[[BinaryIO], None], file: BinaryIO) -> None:
    try:
        write(file)
    except RuntimeError as error:
        # After an error of the file, torch.save fails again while it closes its archive, and hides the first error.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
