"""Commands that run in processes forked with the packages already imported.

Importing PyTorch and Lightning takes six seconds of CPU time, most of the time of a short command. A fork server imports them
once per test process. The forked process gets its own session, arguments, environment and streams, so that it behaves like
`python src/train.py`; tests of imports, streams and other launchers start a new interpreter instead.
"""

import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from support.runs import ROOT, environment

PACKAGES = (
    "torch",
    "torchvision",
    "lightning.pytorch",
    "torchmetrics",
    "hydra",
    "torch.utils.tensorboard",
    "matplotlib.pyplot",
)
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([*PACKAGES])


class Command:
    """A running `python src/NAME.py`, with the part of `subprocess.Popen` that the tests use.

    Args:
        name: command, such as "train".
        arguments: its command line.
        cwd: working directory.
        merged: send standard error to `stdout` too.
        variables: environment variables besides those of the test process.
    """

    def __init__(self, name: str, *arguments: str, cwd: Path, merged: bool = False, **variables: str) -> None:
        reader, writer = FORKED.Pipe(duplex=False)
        number, path = tempfile.mkstemp()
        os.unlink(path)
        self._errors = os.fdopen(number, "w+", errors="replace")
        errors_end = writer if merged else Connection(os.dup(number), readable=False)
        script = str(ROOT / "src" / f"{name}.py")
        self._process = FORKED.Process(
            target=_main, args=([script, *arguments], str(cwd), environment(**variables), writer, errors_end)
        )
        self._process.start()
        writer.close()
        errors_end.close()
        self.stdout: IO[str] = os.fdopen(os.dup(reader.fileno()), errors="replace")
        reader.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, minus the signal number if a signal ended the process; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout_s: float = 300) -> int:
        """Return the exit code when the process has ended; kill it and raise TimeoutExpired if it takes too long."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(str(self._process), timeout_s)
        return self._process.exitcode

    def communicate(self, timeout_s: float = 300) -> tuple[str, str]:
        """Return the rest of standard output, and standard error, when the process has ended."""
        timer = threading.Timer(timeout_s, os.killpg, (self.pid, signal.SIGKILL))
        timer.start()
        try:
            output = self.stdout.read()
            self._process.join()
        finally:
            timer.cancel()
        self._errors.seek(0)
        return output, self._errors.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.exitcode is None and kind is not None:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()
        self.stdout.close()
        self._errors.close()


def run(
    name: str, *arguments: str, cwd: Path, timeout_s: float = 300, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end and return its exit code and output."""
    with Command(name, *arguments, cwd=cwd, **variables) as command:
        output, errors = command.communicate(timeout_s)
        code = command.wait()
    return subprocess.CompletedProcess([name, *arguments], code, output, errors)


def _main(argv: list[str], cwd: str, variables: dict[str, str], output: Connection, errors: Connection) -> None:
    """Become the command; runs in the forked process."""
    os.setsid()
    os.dup2(output.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    output.close()
    errors.close()
    multiprocessing.set_start_method(None, force=True)  # multiprocessing has made the fork server the default here
    sys.stdout = os.fdopen(1, "w", 1, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        logging.shutdown()
