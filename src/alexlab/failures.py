"""Errors of the system as sentences: a full disk, a process that was killed. Imports no torch."""

import re
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from alexlab.disk import disk_error, free
from alexlab.errors import AlexlabError, DiskError, RankError

LOADERS = ("torch/utils/data/dataloader.py", "torch/multiprocessing/reductions.py")
REMEDY = "usually the machine has run out of memory: take a smaller data.num_workers, or 0"


def explained(error: BaseException, folder: Path) -> AlexlabError | None:
    """Return an error that a person can act on for what the system has done to a command, or None for a bug.

    Args:
        error: what was raised.
        folder: the run folder, which an error in writing names where it has no path itself.
    """
    if isinstance(error, AlexlabError):
        return error
    cause: BaseException | None = error
    while cause is not None:  # Lightning and `logging` wrap what a write has raised
        found = _explained(cause, folder)
        if found is not None:
            return found
        cause = cause.__cause__
    return None


@contextmanager
def explaining(folder: Path) -> Iterator[None]:
    """Raise `explained` errors in place of those of the system."""
    try:
        yield
    except Exception as error:
        found = explained(error, folder)
        if found is None or found is error:
            raise
        raise found from error


def _explained(error: BaseException, folder: Path) -> AlexlabError | None:
    text = str(error)
    if isinstance(error, BrokenProcessPool):
        return RankError("a process that reads images was killed; usually the machine has run out of memory")
    if isinstance(error, RuntimeError):
        worker = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.+)", text)
        if worker is not None:
            how = re.sub(r"is killed by signal: ([\w ]+).*", r"was killed (\1)", worker[2])
            more = _shared_memory() if "Bus error" in text else REMEDY
            return RankError(f"a loader process (pid {worker[1]}) {how.rstrip('. ')}; {more}")
    if isinstance(error, RuntimeError | OSError) and re.search(r"shared memory|</?torch_\d+|/dev/shm", text):
        return DiskError(f"loader processes need shared memory: {text.splitlines()[-1]}; {_shared_memory()}")
    if isinstance(error, EOFError | ConnectionError | FileNotFoundError) and _in_loader(error):
        return RankError(f"a loader process has ended; {REMEDY}")
    return disk_error(error, folder) if isinstance(error, OSError) else None


def _shared_memory() -> str:
    return f"{free(Path('/dev/shm'))}: make it larger (docker run --shm-size=8g), or take data.num_workers=0"


def _in_loader(error: BaseException) -> bool:
    """Whether it was raised while a batch was taken from a loader process."""
    return any(frame.f_code.co_filename.endswith(LOADERS) for frame, _ in walk_tb(error.__traceback__))
