"""Signal handling: the first signal stops a run after the current step with a checkpoint, a second one stops it immediately.

SIGTERM comes from a scheduler or `kill`, SIGUSR1 from SLURM before the time limit, SIGINT from Ctrl-C, SIGHUP from a closed
terminal. Each may reach any process of a run, or all of them: the parent forwards it to the ranks, and the ranks agree on the
step (`alexlab.training.callbacks.preemption`).
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
DEBOUNCE_S = 1.0  # signals within this interval count as one: a process may get it directly and from its parent
PREEMPTED, INTERRUPTED = 75, 130  # exit codes: EX_TEMPFAIL of <sysexits.h>, and 128 + SIGINT


class Interrupted(BaseException):
    """Interruption of the work by a signal; `resume=` continues it. Not an Exception: it must not be handled as a failure.

    Args:
        signum: the signal.
        agreed: whether all ranks stopped after the same step.
    """

    def __init__(self, signum: int, agreed: bool = False) -> None:
        super().__init__(signum, agreed)
        self.signum, self.agreed = signum, agreed

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.signum == signal.SIGINT else PREEMPTED


def raise_interrupted(signum: int) -> None:
    """Raise Interrupted: the default response, for work that can be stopped anywhere."""
    raise Interrupted(signum)


class Signals:
    """Signals received by this process, and its response to the first one; a second one raises Interrupted.

    Attributes:
        first: the first signal received; None before it.
        agreed: the signal that all ranks agreed to stop for; None before that.
    """

    def __init__(self) -> None:
        self.pid = 0  # of the process that responds; 0 without installed handlers
        self.first: int | None = None
        self.first_s = 0.0
        self.agreed: int | None = None
        self.respond: Callable[[int], None] = raise_interrupted

    @contextmanager
    def install(self) -> Iterator[None]:
        """Handle the signals within the context, unless an outer one does. Ignored signals stay ignored (nohup)."""
        if self.pid == os.getpid() or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.first = None  # a process forked from one that received a signal has a copy of it
        self.reset_after_fork()
        previous = {signum: signal.getsignal(signum) for signum in HANDLED}
        for signum in HANDLED:
            if previous[signum] != signal.SIG_IGN:
                signal.signal(signum, self._handle)
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)
            self.pid, self.first, self.agreed = 0, None, None

    def reset_after_fork(self) -> None:
        """Make a process forked from one with installed handlers respond to signals itself.

        Raises:
            Interrupted: if it has already received a signal.
        """
        self.pid, self.respond, self.agreed = os.getpid(), raise_interrupted, None
        self.raise_pending()

    def raise_pending(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self.first is not None and self.pid == os.getpid():
            raise Interrupted(self.first)

    @contextmanager
    def handler(self, respond: Callable[[int], None]) -> Iterator[None]:
        """Replace the response to the first signal; if it has been received, call `respond` now."""
        previous, self.respond = self.respond, respond
        try:
            if self.first is not None:
                respond(self.first)
            yield
        finally:
            self.respond = previous

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a forked process before reset_after_fork: only its parent may terminate it
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            self.first = self.first or signum
        elif self.first is None:
            self.first, self.first_s = signum, time.monotonic()
            self.respond(signum)
        elif time.monotonic() - self.first_s > DEBOUNCE_S:
            raise Interrupted(signum)


signals = Signals()


def ignore_first_sigterm(worker: int) -> None:
    """Ignore one SIGTERM in a DataLoader worker, so that a signal to every process of a run leaves it alive to finish the step.

    Args:
        worker: id of the worker, as DataLoader passes it.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.signal(signum, signal.SIG_DFL) and None)
