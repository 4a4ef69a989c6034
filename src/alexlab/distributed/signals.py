"""What a signal does: a run ends after the step that it is in, with a checkpoint; a second one ends it at once. Imports no torch.

SIGTERM comes from a scheduler or `kill`, SIGUSR1 from SLURM before the time is up, SIGINT from Ctrl-C, SIGHUP from a terminal
that is closed. Each may reach any process of a run, or all: the parent hands it on to the ranks, and the ranks agree on the
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
DEBOUNCE_S = (
    1.0  # two signals within it are one that has come by two ways: to all processes, and handed on by their parent
)
PREEMPTED, INTERRUPTED = 75, 130  # exit codes: EX_TEMPFAIL of <sysexits.h>, and 128 + SIGINT


class Interrupted(BaseException):
    """A signal has ended the work, which goes on where it was with `resume=`. No Exception: nobody may take it for a failure.

    Args:
        signum: the signal.
        agreed: whether all ranks have ended after the same step.
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
    """The response where nothing has to be finished."""
    raise Interrupted(signum)


class Signals:
    """What this process has heard, and how it responds to the first signal; it ends at once on the second.

    `first` is the first signal, None before it; `agreed` the one on which all ranks have agreed.
    """

    def __init__(self) -> None:
        self.pid = 0  # of the process that responds; 0 where nobody listens
        self.first: int | None = None
        self.first_s = 0.0
        self.agreed: int | None = None
        self.respond: Callable[[int], None] = raise_interrupted

    @contextmanager
    def install(self) -> Iterator[None]:
        """Listens, unless somebody around it does already; a signal that was ignored before stays so (nohup)."""
        if self.pid == os.getpid() or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.first = None
        self.reset_after_fork()
        before = {signum: signal.getsignal(signum) for signum in HANDLED}
        for signum in HANDLED:
            if before[signum] != signal.SIG_IGN:
                signal.signal(signum, self._handle)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            self.pid = 0

    def reset_after_fork(self) -> None:
        """For a process that was forked from one that listens: it responds by itself from here on.

        Raises:
            Interrupted: when it has heard a signal already.
        """
        self.pid, self.respond, self.agreed = os.getpid(), raise_interrupted, None
        self.raise_pending()

    def raise_pending(self) -> None:
        """Raises Interrupted when a signal was heard."""
        if self.first is not None and self.pid == os.getpid():
            raise Interrupted(self.first)

    @contextmanager
    def handler(self, respond: Callable[[int], None]) -> Iterator[None]:
        """Another response to the first signal; one that was heard before gets it now."""
        before, self.respond = self.respond, respond
        try:
            if self.first is not None:
                respond(self.first)
            yield
        finally:
            self.respond = before

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a forked process that has not said what it wants: only its parent may end it
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
    """For a loader process: a SIGTERM that reaches every process of a run leaves it, since the step must be finished.

    Args:
        worker: its number, as a DataLoader tells it.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.signal(signum, signal.SIG_DFL) and None)
