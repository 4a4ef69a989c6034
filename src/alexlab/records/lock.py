"""Exclusive lock of a run folder."""

import fcntl
import os
from pathlib import Path

from alexlab.errors import ConfigError
from alexlab.records.layout import LOCK


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
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            process = self.file.read().strip()
            self.file.close()
            raise ConfigError(f"a run folder must have one writer; process {process} is writing {run_dir}") from None
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        # Forked loader processes hold a copy of the file, so closing this one would not release the lock.
        fcntl.flock(self.file, fcntl.LOCK_UN)
        self.file.close()


def lock_holder(run_dir: Path) -> str | None:
    """Return the pid of the process that holds a run folder, or None."""
    try:
        with (run_dir / LOCK).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "?"
    except OSError:
        return None
    return None
