"""Errors of the system as sentences: a full disk, a process that was killed. Imports no torch."""

import re
import signal
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from alexlab.errors import AlexlabError, DiskError, LostPeerError, RankError
from alexlab.runs.atomic import disk_error, free_space

LOADERS = ("torch/utils/data/dataloader.py", "torch/multiprocessing/reductions.py")
SEMAPHORES = ("multiprocessing/synchronize.py",)  # they are files in /dev/shm, too
# What gloo, NCCL and the store of the ranks say when another rank is gone, or does not answer.
PEERS = re.compile(
    r"connection (closed|reset) by (remote )?peer|timed out waiting|gloo.*(timed out|timeout|broken pipe)|"
    r"remote process exited|nccl.*(timed? ?out|remote error|aborted)|failed to recv, got 0 bytes",
    re.IGNORECASE | re.DOTALL,
)
REMEDY = "usually the machine has run out of memory: take a smaller data.num_workers, or 0"


def as_user_error(error: BaseException, folder: Path) -> AlexlabError | None:
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
def translate_errors(folder: Path) -> Iterator[None]:
    """Raise `as_user_error` errors in place of those of the system."""
    try:
        yield
    except Exception as error:
        found = as_user_error(error, folder)
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
            by = next((each.name for each in signal.Signals if f"{signal.strsignal(each)}." in worker[2]), None)
            how = f"was killed by {by}" if by else worker[2].rstrip(". ")
            more = _shared_memory() if by == "SIGBUS" else REMEDY
            return RankError(f"a loader process (pid {worker[1]}) {how}; {more}")
    if isinstance(error, RuntimeError) and PEERS.search(text):
        return LostPeerError(f"the connection to another rank was lost: {text.splitlines()[0].rpartition('] ')[2]}")
    if isinstance(error, RuntimeError | OSError) and re.search(r"shared memory|</?torch_\d+|/dev/shm", text):
        return DiskError(f"loader processes need shared memory: {text.splitlines()[-1]}; {_shared_memory()}")
    if isinstance(error, OSError) and _passes(error, SEMAPHORES):
        return DiskError(f"loader processes need shared memory: {error.strerror}; {_shared_memory()}")
    if isinstance(error, EOFError | ConnectionError | FileNotFoundError) and _passes(error, LOADERS):
        return RankError(f"a loader process has ended; {REMEDY}")
    return disk_error(error, folder) if isinstance(error, OSError) else None


def _shared_memory() -> str:
    return f"{free_space(Path('/dev/shm'))}: make it larger (docker run --shm-size=8g), or take data.num_workers=0"


def _passes(error: BaseException, modules: tuple[str, ...]) -> bool:
    """Return whether an error was raised below one of these modules."""
    return any(frame.f_code.co_filename.endswith(modules) for frame, _ in walk_tb(error.__traceback__))
