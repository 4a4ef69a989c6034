"""Exclusive lock of a run folder."""

import errno
import fcntl
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from alexlab.errors import ConfigError
from alexlab.records.layout import LOCK

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
READERS_S = 0.2  # `lock_holder` of another process holds a shared lock for a moment


log = logging.getLogger(__name__)


class RunLock:
    """Lock of a run folder. The system releases it when the process exits, even if it is killed.

    Raises:
        ConfigError: if another process holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        try:
            self.file = (run_dir / LOCK).open("a+")
        except OSError as error:
            raise ConfigError(
                f"the run folder must be writable; cannot write in {run_dir}: {error.strerror}"
            ) from error
        deadline_s = time.monotonic() + READERS_S
        while not try_lock(self.file, fcntl.LOCK_EX):
            if time.monotonic() > deadline_s:
                self.file.seek(0)
                process = self.file.read().strip()
                self.file.close()
                raise ConfigError(
                    f"only one process at a time may write to {run_dir}, and process {process} does; wait for it or stop it"
                )
            time.sleep(READERS_S / 10)
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        # Forked DataLoader workers hold a copy of the file, so closing this one would not release the lock.
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self.file, fcntl.LOCK_UN)
        self.file.close()


def lock_holder(run_dir: Path) -> str | None:
    """Return the pid of the process that holds a run folder, or None."""
    try:
        with (run_dir / LOCK).open() as file:  # a shared lock needs no write access
            return None if try_lock(file, fcntl.LOCK_SH) else file.read().strip() or "?"
    except OSError:
        return None


def try_lock(file: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    """Lock a file unless another process holds its lock, and return whether that succeeded.

    On a file system without locks, such as Lustre mounted without `flock`, every lock succeeds; an exclusive one logs a warning.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if kind == fcntl.LOCK_EX:
            log.warning(
                "the file system of %s has no locks: two processes could write to it at the same time", file.name
            )
    return True
