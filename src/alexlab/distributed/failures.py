"""User errors for failures of the system: a full disk, a killed process, a lost connection."""

import re
import signal
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from alexlab.errors import AlexlabError, DiskError, LostPeerError, RankError
from alexlab.records.disk_errors import disk_error, free_space

LOADERS = ("torch/utils/data/dataloader.py", "torch/multiprocessing/reductions.py")
SEMAPHORES = ("multiprocessing/synchronize.py",)  # these are files in /dev/shm too
# Messages of gloo, NCCL and the TCPStore when another rank is gone or does not answer.
PEERS = re.compile(
    r"connection (closed|reset) by (remote )?peer|timed out waiting|gloo.*(timed out|timeout|broken pipe)|"
    r"remote process exited|nccl.*(timed? ?out|remote error|aborted)|failed to recv, got 0 bytes",
    re.IGNORECASE | re.DOTALL,
)
REMEDY = "usually the machine ran out of memory: use a smaller data.num_workers, or 0"


def as_user_error(error: BaseException, run_dir: Path) -> AlexlabError | None:
    """Return an error that a user can act on for a failure of the system; None for a bug.

    Args:
        error: the exception raised.
        run_dir: path to report for a write error that names none.
    """
    if isinstance(error, AlexlabError):
        return error
    cause: BaseException | None = error
    while cause is not None:  # Lightning and `logging` wrap errors of writing
        found = _as_user_error(cause, run_dir)
        if found is not None:
            return found
        cause = cause.__cause__
    return None


@contextmanager
def translate_errors(run_dir: Path) -> Iterator[None]:
    """Replace failures of the system with the errors from `as_user_error`."""
    try:
        yield
    except Exception as error:
        found = as_user_error(error, run_dir)
        if found is None or found is error:
            raise
        raise found from error


def _as_user_error(error: BaseException, run_dir: Path) -> AlexlabError | None:
    message = str(error)
    if isinstance(error, BrokenProcessPool):
        return RankError("a process that reads images was killed; usually the machine ran out of memory")
    if isinstance(error, RuntimeError):
        worker = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.+)", message)
        if worker is not None:
            name = next((each.name for each in signal.Signals if f"{signal.strsignal(each)}." in worker[2]), None)
            event = f"was killed by {name}" if name else worker[2].rstrip(". ")
            remedy = _shared_memory() if name == "SIGBUS" else REMEDY
            return RankError(f"a DataLoader worker (pid {worker[1]}) {event}; {remedy}")
    if isinstance(error, RuntimeError) and PEERS.search(message):
        reason = message.splitlines()[0].rpartition("] ")[2]
        return LostPeerError(
            f"the connection to another rank was lost ({reason}); the output of that rank has the cause"
        )
    if isinstance(error, RuntimeError | OSError) and re.search(r"shared memory|</?torch_\d+|/dev/shm", message):
        return DiskError(f"DataLoader workers need shared memory: {message.splitlines()[-1]}; {_shared_memory()}")
    if isinstance(error, OSError) and _passed_through(error, SEMAPHORES):
        return DiskError(f"DataLoader workers need shared memory: {error.strerror}; {_shared_memory()}")
    if isinstance(error, EOFError | ConnectionError | FileNotFoundError) and _passed_through(error, LOADERS):
        return RankError(f"a DataLoader worker exited; {REMEDY}")
    return disk_error(error, run_dir) if isinstance(error, OSError) else None


def _shared_memory() -> str:
    return f"{free_space(Path('/dev/shm'))}: make it larger (docker run --shm-size=8g), or use data.num_workers=0"


def _passed_through(error: BaseException, modules: tuple[str, ...]) -> bool:
    """Return whether the traceback of an error has a frame in one of these modules."""
    return any(frame.f_code.co_filename.endswith(modules) for frame, _ in walk_tb(error.__traceback__))
