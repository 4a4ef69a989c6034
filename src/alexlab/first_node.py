"""The first node of a run: its book of the others, and the decisions. Imports no torch."""

import contextlib
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alexlab.errors import RankError
from alexlab.rounds import (
    FINISHED,
    FIRST,
    JOINED,
    LOST,
    MAX_LINE,
    POLL_S,
    Judge,
    Place,
    Report,
    close_copy,
    described,
    encoded,
    opened,
)
from alexlab.signals import Stopped

log = logging.getLogger(__name__)


@dataclass
class Node:
    """What the book says of a node.

    Args:
        name: of its machine, with its address.
        taking_part: in the round that runs.
        report: of the round that it has ended; it waits for the next one where `waits`.
    """

    name: str
    taking_part: bool = False
    waits: bool = False
    report: Report | None = None


class First:
    """The first node: its book, its port, and the decisions.

    Args:
        address, port: where it listens.
        listener: the socket, bound and listening.
        num_nodes, min_nodes: how many nodes take part in a round, at most and at least.
        max_restarts: how often a round may follow one whose ranks were lost; a lost node is not counted where enough stay.
        silence_s: after how long a node that says nothing is lost.
        join_s: how long to wait for one node more, when there are enough.
        timeout_s: how long to wait for enough.
    """

    number, follows = FIRST, False

    def __init__(
        self,
        address: str,
        port: int,
        listener: socket.socket,
        *,
        num_nodes: int,
        min_nodes: int,
        max_restarts: int,
        silence_s: float,
        join_s: float,
        timeout_s: float,
    ) -> None:
        self.address, self.port, self.listener = address, port, listener
        self.num_nodes, self.min_nodes, self.restarts_left = num_nodes, min_nodes, max_restarts
        self.silence_s, self.join_s, self.timeout_s = silence_s, join_s, timeout_s
        self.fits: Callable[[int], bool] = lambda count: True  # whether a round of so many nodes can be
        self.lock = threading.RLock()
        self.nonce = uuid.uuid4().hex
        self.values: dict[str, Any] = {}
        self.nodes = {FIRST: Node(f"{socket.gethostname()} ({address})", waits=True)}
        self.connections: list[socket.socket] = []
        self.places: dict[int, dict[str, Any]] = {}  # of the round that runs, by node
        self.attempt = -1
        self.reports: list[Report] = []  # of the round that is ending
        self.lost: list[str] = []  # nodes that the round has lost
        self.causes: list[str] = []
        self.stopping = False  # the round is to end since there are more nodes
        self.end: dict[str, Any] | None = None  # how the run has ended
        threading.Thread(target=self._accept, daemon=True).start()

    def agreed(self, key: str, choose: Callable[[], Any]) -> Any:
        value = choose()
        with self.lock:
            self.values[key] = value
        return value

    def over(self) -> str | None:
        with self.lock:
            if self._failed():
                return LOST
            count = sum(node.taking_part for node in self.nodes.values())
            self.stopping = self.stopping or self._largest(count + len(self._waiting())) > count
            return JOINED if self.stopping else None

    def _failed(self) -> bool:
        return bool(self.lost) or any(report.stopped is None for report in self.reports)

    def next(self, report: Report | None, judge: Judge) -> Place:
        with self.lock:
            self._ended(FIRST, report)
        begun_s, told = time.monotonic(), False
        while True:
            with self.lock:
                if any(node.taking_part for node in self.nodes.values()):  # the round is still running on one of them
                    begun_s = time.monotonic()
                else:
                    if self.reports or self.lost:
                        self._judge(judge)
                    count = self._largest(len(self._waiting()))
                    waited_s = time.monotonic() - begun_s
                    if count == self.num_nodes or (count and (self.attempt >= 0 or waited_s >= self.join_s)):
                        return self._form(count)
                    if waited_s >= self.timeout_s:
                        raise RankError(self._too_few())
                    if not told:
                        told = True
                        log.info("nodes: %s; waiting for more at %s:%d", self._names(), self.address, self.port)
            time.sleep(POLL_S)

    def _judge(self, judge: Judge) -> None:
        """Goes on after a round that has ended, or raises why the run ends."""
        reports, lost, failed, stopping = self.reports, self.lost, self._failed(), self.stopping
        self.reports, self.lost, self.stopping = [], [], False
        enough = bool(self._largest(len(self._waiting())))
        signums = [report.stopped for report in reports if report.stopped is not None]
        heard = [report.heard for report in reports if report.heard is not None]
        if heard and enough:
            self._again(f"a node was {Stopped(heard[0])} and has left")
            return
        if heard or not failed:
            if stopping and enough:
                self._again("a node has come")
                return
            raise Stopped((heard or signums)[0], agreed=not failed)
        cause = RankError(f"{' and '.join(lost)}; the ranks of the others were stopped") if lost else judge(reports)
        if isinstance(cause, Stopped) and stopping and enough:  # told to stop before they could do so together
            self._again("a node has come")
            return
        if not isinstance(cause, RankError):
            raise cause
        if lost and enough:
            self._again(str(cause))
        elif self.restarts_left:
            self.restarts_left -= 1
            self._again(f"{cause} ({self.restarts_left} more restarts)")
        elif lost:
            raise RankError(f"{cause}. {self._too_few()}; resume= goes on")
        else:
            raise cause

    def _again(self, why: str) -> None:
        self.causes.append(why)
        log.warning("%s; going on from the last checkpoint", why)

    def _form(self, count: int) -> Place:
        """The next round, of the nodes that have waited longest."""
        chosen = self._waiting()[:count]
        self.attempt += 1
        place = opened(Place(self.attempt, count=count, address=self.address))
        known = {"attempt": self.attempt, "count": count, "address": self.address, "port": place.port}
        self.places = {number: {**known, "number": order} for order, number in enumerate(chosen)}
        for number in chosen:
            self.nodes[number].taking_part, self.nodes[number].waits = True, False
        log.info("round %d: %d nodes: %s", self.attempt + 1, count, self._names(chosen))
        return place

    def leave(self, error: BaseException | None = None) -> None:
        """Tells the others how the run has ended and closes the port, when they have heard it or are gone."""
        with self.lock:
            if self.end is None:
                self.end = described(error)
            self.nodes[FIRST].taking_part = False
        deadline_s = time.monotonic() + self.silence_s
        while time.monotonic() < deadline_s:
            with self.lock:
                if len(self.nodes) == 1:
                    break
            time.sleep(POLL_S)
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that accepts
        self.listener.close()

    def forked(self) -> None:
        for each in [self.listener, *self.connections]:
            close_copy(each)

    def _waiting(self) -> list[int]:
        return [number for number, node in sorted(self.nodes.items()) if node.waits]

    def _largest(self, available: int) -> int:
        """Of how many of the available nodes a round can be; 0 where there are too few."""
        counts = range(min(available, self.num_nodes), self.min_nodes - 1, -1)
        return next((count for count in counts if self.fits(count)), 0)

    def _too_few(self) -> str:
        needed = [count for count in range(self.min_nodes, self.num_nodes + 1) if self.fits(count)]
        return f"a round needs {' or '.join(map(str, needed))} nodes; there are {len(self._waiting())}: {self._names()}"

    def _names(self, numbers: Sequence[int] | None = None) -> str:
        chosen = self._waiting() if numbers is None else numbers
        return ", ".join(self.nodes[number].name for number in chosen)

    def _ended(self, number: int, report: Report | None) -> None:
        """A node waits for the next round, with its report of the last one."""
        node = self.nodes[number]
        if node.taking_part and report is not None and report.attempt == self.attempt:
            self.reports.append(report)
        node.taking_part, node.waits = False, True

    def _gone(self, number: int, reason: str | None, report: Report | None = None) -> None:
        """A node takes part no more, for a reason, or after its last report."""
        with self.lock:
            node = self.nodes.pop(number, None)
            if node is None or self.end is not None:
                return
            if node.taking_part and report is not None:
                self.reports.append(report)
            elif node.taking_part:
                self.lost.append(f"node {node.name} was lost: {reason}")
            elif reason is not None:
                log.warning("node %s has left: %s", node.name, reason)

    def _accept(self) -> None:
        while True:
            try:
                connection, (address, *_) = self.listener.accept()
            except OSError:  # closed
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection, address), daemon=True).start()

    def _serve(self, connection: socket.socket, address: str) -> None:
        """Answers one node until it leaves or is lost."""
        connection.settimeout(self.silence_s)
        number, reason = -1, "its process has ended"
        try:
            with connection, connection.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE):
                    asked = json.loads(line)
                    if asked["ask"] == "join":
                        number = self._join(f"{str(asked['name'])[:100]} ({address})")
                    connection.sendall(encoded(self._answer(number, asked)))
                    if asked["ask"] == "leave":
                        return
        except TimeoutError:
            reason = f"no word for {self.silence_s:g} s"
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            self._gone(number, reason)

    def _join(self, name: str) -> int:
        with self.lock:
            number = max(self.nodes) + 1
            while number in self.places:  # a node that comes back is another one
                number += 1
            self.nodes[number] = Node(name)
            log.info("node %s has come", name)
            return number

    def _answer(self, number: int, asked: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            if number not in self.nodes:
                raise ValueError("a node must join first")
            report = Report(**asked["report"]) if asked.get("report") else None
            match asked["ask"]:
                case "join":
                    return {"nonce": self.nonce, "num_nodes": self.num_nodes, "silence_s": self.silence_s} | {
                        "timeout_s": self.timeout_s,
                        "elastic": self.min_nodes < self.num_nodes or self.restarts_left > 0,
                    }
                case "get":
                    known = asked["key"] in self.values
                    return {"value": self.values[asked["key"]], "end": self.end} if known else {"end": self.end}
                case "over":
                    ends = self.end is not None and self.end["kind"] != FINISHED
                    over = asked["attempt"] == self.attempt and self._failed()
                    return {"over": LOST if ends or over else None}
                case "wait":
                    if not self.nodes[number].waits:
                        self._ended(number, report)
                    return {"end": self.end}
                case "place":
                    taking_part = self.nodes[number].taking_part
                    return {"end": self.end, "place": self.places[number] if taking_part else None}
                case "leave":
                    self._gone(number, asked.get("reason"), report)
                    return {}
            raise ValueError(f"{asked['ask']} is no question")
