"""Contenders that take turns: each lives in a process of its own, and works only while the others wait.

So the noise of a machine falls on all of them alike, and each has warmed up before it is measured.
"""

import fcntl
import logging
import multiprocessing
import os
import pty
import signal
import struct
import sys
import termios
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from alexlab.distributed.hardware import bind_to, die_with_parent
from alexlab.errors import AlexlabError
from alexlab.output.escape import LineFormatter
from alexlab.output.progress import track

Figures = dict[str, float]
TERMINAL = struct.pack("HHHH", 50, 120, 0, 0)  # rows and columns, and two fields that nobody uses


class Turns:
    """A contender's side: it says what its last turn gave and waits for the next one."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self.pipe = pipe

    def next(self, figures: Figures | None = None) -> None:
        """Waits for a turn.

        Args:
            figures: of the turn that has ended; None before the first one.
        """
        if figures is not None:
            self.pipe.send(figures)
        self.pipe.recv()


@dataclass(frozen=True)
class Contender:
    """One who takes part.

    Args:
        name: in tables.
        body: does its preparations, then asks for one turn after the other; it is ended from outside.
        cores: to which it is bound; none is all of them.
    """

    name: str
    body: Callable[[Turns], None]
    cores: Sequence[int] = ()


def repeated(prepare: Callable[..., Callable[[], Figures]], *args: Any) -> Callable[[Turns], None]:
    """A body that does the same in each turn: what `prepare` gives, called once for each.

    Args:
        prepare: is called in the contender's process.
        args: with which.
    """

    def body(turns: Turns) -> None:
        work = prepare(*args)
        turns.next()
        while True:
            turns.next(work())

    return body


def contest(
    contenders: Sequence[Contender], *, rounds: int, log_dir: Path, title: str, warmup: int = 1
) -> dict[str, list[Figures]]:
    """Lets each contender have a turn in each round, in an order that is reversed from round to round.

    The processes are forked, so this one must have started neither CUDA nor a parallel operation on the CPU. What they print
    goes through a terminal of their own, so that their bars are drawn, to `<log_dir>/<name>.log`.

    Args:
        contenders: at least one.
        rounds: that count.
        log_dir: a folder.
        title: of the bar.
        warmup: rounds before them, that do not count.

    Returns:
        The figures of each contender, one for each round.

    Raises:
        AlexlabError: with the last words of a contender that failed.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    started: list[_Started] = []
    found: dict[str, list[Figures]] = {contender.name: [] for contender in contenders}
    try:
        started += [_start(contender) for contender in contenders]
        for one in started:
            one.listen(log_dir / f"{one.name.replace(' ', '_').replace('/', '_')}.log")
        for number in track(range(rounds + warmup), title):
            for one in started if number % 2 else reversed(started):
                figures = one.turn()
                if number >= warmup:
                    found[one.name].append(figures)
    finally:
        for one in started:
            one.end()
    return found


class _Started:
    """The parent's side of a contender."""

    def __init__(self, name: str, process: Any, pipe: "Connection[Any, Any]", terminal: int) -> None:
        self.name, self.process, self.pipe, self.terminal = name, process, pipe, terminal
        self.listener: threading.Thread | None = None
        self.log = Path()

    def listen(self, path: Path) -> None:
        self.log = path

        def copy() -> None:
            with path.open("wb", buffering=0) as file:
                try:
                    while words := os.read(self.terminal, 65536):
                        file.write(words)
                except OSError:  # the last process that had the terminal has ended
                    pass

        self.listener = threading.Thread(target=copy, daemon=True)
        self.listener.start()

    def turn(self) -> Figures:
        try:
            self.pipe.send(None)
            answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise AlexlabError(f"{self.name} has ended before its turn was over; {self.log} says why") from error
        if isinstance(answer, str):
            raise AlexlabError(f"{self.name} has failed: {answer}")
        return dict(answer)

    def end(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not become the head of its group yet
            self.process.kill()
        self.process.join()
        if self.listener is not None:
            self.listener.join(5)
        os.close(self.terminal)
        self.pipe.close()


def _start(contender: Contender) -> _Started:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    terminal, shown = pty.openpty()
    fcntl.ioctl(shown, termios.TIOCSWINSZ, TERMINAL)
    process = context.Process(target=_live, args=(contender, theirs, shown, os.getpid()), daemon=False)
    process.start()
    theirs.close()
    os.close(shown)
    return _Started(contender.name, process, ours, terminal)


def _live(contender: Contender, pipe: "Connection[Any, Any]", shown: int, parent: int) -> None:
    """The body of a contender's process."""
    os.setsid()
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (0, 1, 2):
        os.dup2(shown, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115 - for good
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.getLogger().handlers = [handler]
    bind_to(list(contender.cores))
    try:
        contender.body(Turns(pipe))
        pipe.send("it has ended by itself")
    except BaseException as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}")
