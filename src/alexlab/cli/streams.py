"""UTF-8 standard streams and a log file whose write errors do not stop a command."""

import codecs
import errno
import io
import locale
import logging
import os
import sys
from typing import Any

from alexlab.errors import DiskError


class Outlet(io.FileIO):
    """File descriptor of a standard stream that drops output instead of raising an error.

    After a closed pipe (`| head`) or a closed terminal the descriptor is redirected to /dev/null. A full disk may have space
    again later; `error` keeps the cause of the loss.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write data, or drop it if that fails."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self.error = error
            else:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            return len(data)


def restart_in_utf8() -> None:
    """Restart this command in Python's UTF-8 mode if the locale has another encoding.

    Names of files and classes are UTF-8 on every machine; with another encoding they could not be distinguished from broken ones.
    """
    names = sys.getfilesystemencoding(), locale.getpreferredencoding(False)
    if any(codecs.lookup(name).name != "utf-8" for name in names):
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_streams() -> None:
    """Open closed standard streams, and make output accept any text and survive a closed reader.

    A stream that was replaced, for example by a test or a notebook, is left unchanged.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next opened file would get this number, and receive the output
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream: Any = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        kept: dict[str, Any] = {"encoding": "utf-8", "line_buffering": number == 2, "write_through": False}
        if stream is not None:
            stream.flush()
            kept = {key: getattr(stream, key) for key in kept}
        raw = Outlet(number, "w", closefd=False)
        stream = io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace", **kept)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def check_output() -> None:
    """Flush the output.

    Raises:
        DiskError: if output was lost because the disk is full.
    """
    sys.stdout.flush()
    outlet = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(outlet, Outlet) and outlet.error is not None:
        raise DiskError(f"cannot write to standard output: {outlet.error.strerror}")


class LogFile(logging.FileHandler):
    """Log file of a run; while the disk is full, lines go to the terminal only."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - name in logging
        """Ignore a full disk, which the writers of larger files report."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
