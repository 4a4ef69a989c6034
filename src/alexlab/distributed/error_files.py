"""Why the ranks of a run have ended: each writes its error to a file at once, as torchrun expects it; the parent finds the cause.

When one rank is gone, the others fail because of its absence and may be seen first, so the parent looks at all of them.
"""

import json
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from alexlab import errors
from alexlab.distributed.failures import as_user_error
from alexlab.distributed.signals import Interrupted, signals
from alexlab.errors import AlexlabError, LostPeerError, RankError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # torchrun prints its message when the run has failed


def write_error_file(error: BaseException) -> None:
    """Write the error that ends this rank, the first one only; a process that is no rank writes nothing."""
    path = Path(os.environ.get(ERROR_FILE, ""))
    if ERROR_FILE not in os.environ or path.exists():
        return
    text = str(error)
    content = {"message": f"{type(error).__name__}: {text}", "timestamp": int(time.time())}
    content |= {"type": type(error).__name__, "text": text, "time_s": time.time()}
    if isinstance(error, Interrupted):
        content |= {"signum": error.signum}
    with suppress(OSError):  # no room for it: the exit code says less
        path.write_text(json.dumps(content))


class ReportErrors(Callback):
    """Writes an error as soon as the Trainer meets it, before it takes the process group down."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if not (isinstance(exception, Interrupted) and exception.agreed):
            write_error_file(as_user_error(exception, Path(trainer.default_root_dir)) or exception)


def read_error_files(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the errors in a folder by rank, the earliest first."""
    found = {int(path.stem): json.loads(path.read_text()) for path in folder.glob("*.json")}
    return dict(sorted(found.items(), key=lambda item: float(item[1]["time_s"])))


def diagnose(
    written: Mapping[int, Mapping[str, Any]], exits: Mapping[int, tuple[int, int]], suspended: Mapping[int, int]
) -> AlexlabError | Interrupted:
    """Return what has ended the ranks: an error of ours, a signal to stop, a killed rank, a suspended one, or the first error.

    Args:
        written: the errors, the earliest first.
        exits: process number and exit code of each rank that had ended before the others were terminated.
        suspended: process numbers of ranks that were suspended when another one failed.
    """
    for error in written.values():
        known = getattr(errors, error["type"], None)
        if isinstance(known, type) and issubclass(known, AlexlabError) and known is not LostPeerError:
            return known(error["text"])
    for error in written.values():
        if "signum" in error:
            return Interrupted(error["signum"])
    if signals.first is not None:
        return Interrupted(signals.first)
    for rank, (pid, code) in exits.items():
        if code < 0:
            name = signal.Signals(-code).name
            return RankError(f"rank {rank} (pid {pid}) was killed by {name}; the other ranks were terminated")
    for rank, pid in suspended.items():
        waiting = next(iter(written), None)
        who = "another rank" if waiting is None else f"rank {waiting}"
        return RankError(
            f"rank {rank} (pid {pid}) is suspended (SIGSTOP); {who} timed out waiting for it, so all ranks were terminated"
        )
    for rank, error in sorted(written.items(), key=lambda item: item[1]["type"] == LostPeerError.__name__):
        return RankError(f"rank {rank} raised {error['message']}; the other ranks were terminated")
    for rank, (pid, code) in exits.items():
        if code:
            return RankError(f"rank {rank} (pid {pid}) exited with code {code} without an error message")
    return RankError("a rank ended without a result")
