"""Error files of the ranks, in torchrun's format, and the diagnosis of a failed run from them.

When one rank dies, the others fail as a consequence and may be noticed first, so the parent reads all error files.
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

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # torchrun prints the message in it when a run has failed


def write_error_file(error: BaseException) -> None:
    """Write the first error of this rank; do nothing in a process without an error file."""
    path = Path(os.environ.get(ERROR_FILE, ""))
    if ERROR_FILE not in os.environ or path.exists():
        return
    text = str(error)
    content = {"message": f"{type(error).__name__}: {text}", "timestamp": int(time.time())}
    content |= {"type": type(error).__name__, "text": text, "time_s": time.time()}
    if isinstance(error, Interrupted):
        content |= {"signum": error.signum}
    with suppress(OSError):  # the disk is full: only the exit code reports the failure
        path.write_text(json.dumps(content))


class ReportErrors(Callback):
    """Callback that writes the error file as soon as the Trainer fails, before it destroys the process group."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if not (isinstance(exception, Interrupted) and exception.agreed):
            write_error_file(as_user_error(exception, Path(trainer.default_root_dir)) or exception)


def read_error_files(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the errors in a folder by rank, the earliest first."""
    found = {}
    for path in folder.glob("*.json"):
        with suppress(ValueError):  # truncated: the disk was full, or the rank was killed while writing
            found[int(path.stem)] = json.loads(path.read_text())
    return dict(sorted(found.items(), key=lambda item: float(item[1]["time_s"])))


def diagnose(
    reports: Mapping[int, Mapping[str, Any]], exits: Mapping[int, tuple[int, int]], suspended: Mapping[int, int]
) -> AlexlabError | Interrupted:
    """Return the cause of failed ranks: an AlexlabError, a signal, a killed rank, a suspended one, or the first other error.

    Args:
        reports: content of the error files by rank, the earliest first.
        exits: pid and exit code of each rank that exited before the others were terminated.
        suspended: pids of the ranks that were suspended when another one failed.
    """
    for report in reports.values():
        error_class = getattr(errors, report["type"], None)
        if isinstance(error_class, type) and issubclass(error_class, AlexlabError) and error_class is not LostPeerError:
            return error_class(report["text"])
    for report in reports.values():
        if "signum" in report:
            return Interrupted(report["signum"])
    if signals.first is not None:
        return Interrupted(signals.first)
    for rank, (pid, code) in exits.items():
        if code < 0:
            name = signal.Signals(-code).name
            return RankError(f"rank {rank} (pid {pid}) was killed by {name}; the other ranks were terminated")
    for rank, pid in suspended.items():
        waiting = next(iter(reports), None)
        peer = "another rank" if waiting is None else f"rank {waiting}"
        return RankError(
            f"rank {rank} (pid {pid}) is suspended (SIGSTOP); {peer} timed out waiting for it, so all ranks were terminated"
        )
    for rank, report in sorted(reports.items(), key=lambda item: item[1]["type"] == LostPeerError.__name__):
        return RankError(f"rank {rank} raised {report['message']}; the other ranks were terminated")
    for rank, (pid, code) in exits.items():
        if code:
            return RankError(f"rank {rank} (pid {pid}) exited with code {code} without an error message")
    return RankError("a rank exited without returning a result; its output above has the cause")
