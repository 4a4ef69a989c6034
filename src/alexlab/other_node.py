"""A node of a run that is not the first. Imports no torch."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from alexlab.errors import RankError
from alexlab.rounds import LOST, MAX_LINE, POLL_S, Judge, Place, Report, close_copy, encoded, ended, parsed
from alexlab.signals import Stopped

log = logging.getLogger(__name__)


class Other:
    """A node that is not the first.

    Args:
        endpoint: HOST:PORT of the first.
        connect_s: how long to wait for it.
    """

    def __init__(self, endpoint: str, connect_s: float) -> None:
        self.endpoint = endpoint
        self.lock = threading.Lock()
        self.follows = False
        self.fits: Callable[[int], bool] = lambda count: True  # the first node decides
        self.causes: list[str] = []
        self.left = False
        self.failure: str | None = None  # why the first node is lost
        self.told: tuple[int, str | None] = (-1, None)  # an attempt, and why it is over
        self.attempt = -1
        about = self._join(connect_s)
        self.nonce, self.num_nodes, self.elastic = about["nonce"], about["num_nodes"], about["elastic"]
        self.silence_s, self.timeout_s = about["silence_s"], about["timeout_s"]
        self.number = -1  # until a round has begun
        threading.Thread(target=self._beat, daemon=True).start()

    def _join(self, connect_s: float) -> dict[str, Any]:
        """Connects, again and again until the time is up.

        Raises:
            RankError: when nobody answers.
        """
        deadline_s = time.monotonic() + connect_s
        address = parsed(self.endpoint)
        while True:
            try:
                with self.lock:
                    self.connection = socket.create_connection(address, timeout=min(connect_s, 5.0))
                    self.lines = self.connection.makefile("rb")
                    self.address: str = self.connection.getsockname()[0]
                    about = self._exchange({"ask": "join", "name": socket.gethostname()})
                    self.connection.settimeout(about["silence_s"])
                    self.failure = None
                    return about
            except (OSError, EOFError, ValueError) as error:
                if time.monotonic() > deadline_s:
                    raise RankError(
                        f"the first node must answer at elastic.rendezvous={self.endpoint}; it has not within "
                        f"{connect_s:g} s: {error}"
                    ) from error
                time.sleep(1.0)

    def _ask(self, what: str, **values: Any) -> dict[str, Any]:
        """Raises RankError when there is no answer."""
        with self.lock:
            if self.failure is None:
                try:
                    return self._exchange({"ask": what, **values})
                except EOFError:
                    self.failure = "its process has ended"
                except TimeoutError:
                    self.failure = f"no answer for {self.connection.gettimeout():g} s"
                except (OSError, ValueError) as error:
                    self.failure = str(error)
            raise RankError(f"the first node, {self.endpoint}, was lost: {self.failure}")

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        self.connection.sendall(encoded(message))
        line = self.lines.readline(MAX_LINE)
        if not line:
            raise EOFError
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _beat(self) -> None:
        """Says that this node is there, and hears whether the round is over."""
        while not self.left:
            attempt = self.attempt
            try:
                self.told = attempt, self._ask("over", attempt=attempt)["over"]
            except RankError:
                self.told = attempt, LOST
            time.sleep(min(0.5, self.silence_s / 5))

    def agreed(self, key: str, choose: Callable[[], Any]) -> Any:
        deadline_s = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline_s:
            answer = self._ask("get", key=key)
            if "value" in answer:
                return answer["value"]
            if answer["end"]:
                raise ended(answer["end"])
            time.sleep(POLL_S)
        raise RankError(f"the first node, {self.endpoint}, has not told {key} within {self.timeout_s:g} s")

    def over(self) -> str | None:
        attempt, why = self.told
        return why if attempt == self.attempt else None

    def next(self, report: Report | None, judge: Judge) -> Place:
        while True:
            try:
                self._ask("wait", report=None if report is None else vars(report))
                while True:
                    answer = self._ask("place")
                    if answer["end"]:
                        raise ended(answer["end"])
                    if answer["place"]:
                        place = Place(**answer["place"])
                        self.attempt, self.number = place.attempt, place.number
                        return place
                    time.sleep(POLL_S)
            except RankError as error:
                if self.failure is None or not self.elastic:
                    raise
                log.warning("%s; trying again for %g s", error, self.timeout_s)
                self._close("")
                if self._join(self.timeout_s)["nonce"] != self.nonce:
                    raise RankError(f"{error}; there is another run at {self.endpoint} now") from error
                report = None

    def leave(self, error: BaseException | None = None) -> None:
        self.left = True
        heard = error.signum if isinstance(error, Stopped) else None
        report = None if heard is None else vars(Report(self.attempt, stopped=heard, heard=heard))
        with contextlib.suppress(RankError):  # which is gone already
            self._ask("leave", reason=None if error is None else str(error), report=report)
        self._close("it was left")

    def _close(self, why: str) -> None:
        with self.lock:
            self.failure = self.failure or why
            self.lines.close()
            self.connection.close()

    def forked(self) -> None:
        close_copy(self.connection)
