"""UTF-8 standard streams and a log file whose write errors never end a command. Imports no torch."""

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
    """The descriptor of a standard stream. What it cannot take is dropped, and the command goes on.

    A closed pipe (`| head`) and a closed terminal take nothing more, so the descriptor leads nowhere from then on. A full disk
    may have room again; `error` keeps the cause of the loss.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write what can be written."""
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
    """Start this command again in Python's UTF-8 mode where the locale has another encoding.

    Names of files and classes are UTF-8 on every machine; in another encoding they could not be told from broken ones.
    """
    names = sys.getfilesystemencoding(), locale.getpreferredencoding(False)
    if any(codecs.lookup(name).name != "utf-8" for name in names):
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_streams() -> None:
    """Open the standard streams that are closed, and make output accept any text and outlive who reads it.

    A stream that was replaced, such as by a test or a notebook, is left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # a file that is opened next would take its place, and get what is printed
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
        DiskError: when a full disk has not taken all of it.
    """
    sys.stdout.flush()
    outlet = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(outlet, Outlet) and outlet.error is not None:
        raise DiskError(f"cannot write all of the output: {outlet.error.strerror}")


class LogFile(logging.FileHandler):
    """The log of a run; lines for which the disk has no room are in the terminal only."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of logging
        """Leave a full disk to what writes more than lines, which report it."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
