"""Interleaved timing: every candidate has its own process, and only one of them works at a time.

Load from other programs and changes of the clock rate thus affect all candidates alike, and each is warm when it is measured.
"""

import logging
import multiprocessing
import os
import re
import signal
import sys
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

SAMPLE_S = 0.05  # between two samples of a candidate's process

Figures = dict[str, float]


class Turn:
    """The candidate's end of its connection to the timer.

    Args:
        fd: file descriptor of the connection; it is inherited by forked processes.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._connection: Connection[Any, Any] = Connection(os.dup(fd))

    def next(self, figures: Figures | None = None) -> None:
        """Wait for the next turn.

        Args:
            figures: measurements of the turn that has ended; None before the first turn.
        """
        if figures is not None:
            self._connection.send(figures)
        self._connection.recv()


@dataclass(frozen=True)
class Candidate:
    """A process that is timed.

    Args:
        name: label in tables and name of the log.
        run: function that prepares, then calls `Turn.next` before each piece of work; it is killed after the last turn.
        cores: logical processors that it is bound to; empty for all.
    """

    name: str
    run: Callable[[Turn], None]
    cores: Sequence[int] = ()


def loop(prepare: Callable[..., Callable[[], Figures]], *args: Any) -> Callable[[Turn], None]:
    """Return a `Candidate.run` that repeats the same work in every turn.

    Args:
        prepare: called once in the candidate's process; returns the work of a turn.
        args: arguments of `prepare`.
    """

    def run(turn: Turn) -> None:
        work = prepare(*args)
        turn.next()
        while True:
            turn.next(work())

    return run


def interleave(
    candidates: Sequence[Candidate],
    *,
    num_rounds: int,
    log_dir: Path,
    title: str,
    num_warmup: int = 1,
    sample: Callable[[int], Figures] | None = None,
    turn_s: float | None = None,
    failures: dict[str, str] | None = None,
) -> dict[str, list[Figures]]:
    """Give every candidate a turn in each round, in an order that is reversed from round to round.

    Candidates are forked, so the calling process must have started neither CUDA nor a parallel operation on the CPU. Their
    output goes to `<log_dir>/<name>.log`.

    Args:
        candidates: candidates to time, at least one.
        num_rounds: number of recorded rounds.
        log_dir: folder of the logs, created if it does not exist.
        title: description of the progress bar.
        num_warmup: number of warm-up rounds, which are not recorded.
        sample: called with the process id of a candidate every 50 ms of its turn; the largest value of each figure is recorded
            with those that the candidate reports.
        turn_s: seconds after which a turn fails, if nothing is sampled; None for no limit.
        failures: receiver of the message of each candidate that fails, which then takes no further turns and has no figures; None
            raises the first failure.

    Returns:
        The figures of each candidate, one dict per round.

    Raises:
        AlexlabError: if a candidate fails or exits and `failures` is None.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    processes: list[_Process] = []
    results: dict[str, list[Figures]] = {candidate.name: [] for candidate in candidates}
    try:
        for candidate in candidates:
            processes.append(_Process(candidate, log_dir))
        for number in track(range(num_rounds + num_warmup), title):
            for process in processes if number % 2 else reversed(processes):
                if failures is not None and process.name in failures:
                    continue
                try:
                    figures = process.take_turn(sample, turn_s)
                except AlexlabError as error:
                    if failures is None:
                        raise
                    failures[process.name], results[process.name] = str(error), []
                    process.kill()
                    continue
                if number >= num_warmup:
                    results[process.name].append(figures)
    finally:
        for process in processes:
            if failures is None or process.name not in failures:
                process.kill()
    return results


class _Process:
    """The timer's end of the connection to a candidate, whose process it starts."""

    def __init__(self, candidate: Candidate, log_dir: Path) -> None:
        self.name = candidate.name
        self.log_path = log_dir / (re.sub(r"[^\w.-]+", "_", candidate.name) + ".log")
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_main, args=(candidate, theirs, self.log_path, os.getpid()))
        self.process.start()
        theirs.close()

    def take_turn(self, sample: Callable[[int], Figures] | None, limit_s: float | None) -> Figures:
        peaks: Figures = {}
        try:
            self.connection.send(None)
            while sample is not None:
                for name, value in sample(self.process.pid or 0).items():
                    peaks[name] = max(value, peaks.get(name, value))
                if self.connection.poll(SAMPLE_S):
                    break
            if sample is None and not self.connection.poll(limit_s):
                raise AlexlabError(
                    f"{self.name} took more than {limit_s:g} s for a turn; its output is in {self.log_path}"
                )
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise AlexlabError(
                f"{self.name} exited in the middle of its turn; its output is in {self.log_path}"
            ) from error
        if isinstance(answer, str):
            raise AlexlabError(f"{self.name} failed: {answer}; its output is in {self.log_path}")
        return {**answer, **peaks}

    def kill(self) -> None:
        """Kill the candidate with all processes that it has started."""
        try:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        except ProcessLookupError:  # killed before it has called setsid
            self.process.kill()
        self.process.join()
        self.connection.close()


def _main(candidate: Candidate, connection: "Connection[Any, Any]", log_path: Path, parent: int) -> None:
    """Run a candidate in its process."""
    os.setsid()
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    redirect_output(log_path)
    bind_to(list(candidate.cores))
    try:
        candidate.run(Turn(connection.fileno()))
        connection.send("it returned before its last turn")
    except BaseException as error:
        traceback.print_exc()
        connection.send(f"{type(error).__name__}: {error}")


def redirect_output(path: Path) -> None:
    """Redirect the output of this process to a file, and its input from nothing."""
    with open(os.devnull, "rb") as empty, path.open("wb") as log:
        os.dup2(empty.fileno(), 0)
        for fd in (1, 2):
            os.dup2(log.fileno(), fd)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115 - stay open
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], force=True)
