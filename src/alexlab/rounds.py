"""What the nodes of a run tell each other: places, reports, and how it has ended. Imports no torch."""

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from alexlab import errors
from alexlab.errors import AlexlabError, ConfigError, RankError
from alexlab.signals import Stopped

HERE = "127.0.0.1"
LOST, JOINED = "lost", "joined"  # why a round is over
FINISHED = "finished"  # how a run has ended, if not by an error
MAX_LINE = 1 << 24  # bytes of a message
POLL_S = 0.1
FIRST = 0  # number of the first node
Judge = Callable[
    [Sequence["Report"]], AlexlabError | Stopped
]  # from the reports of all nodes to what has ended a round


@dataclass(frozen=True)
class Place:
    """What a node is in a round.

    Args:
        attempt: the number of the round, from 0.
        number, count: of the node among those of the round.
        address, port: where the ranks' store is, on the first node.
        listener: the socket of that port, on the first node.
    """

    attempt: int
    number: int = 0
    count: int = 1
    address: str = HERE
    port: int = 0
    listener: socket.socket | None = None


@dataclass(frozen=True)
class Report:
    """How a round has ended on one node.

    Args:
        attempt: its number.
        words: what its ranks have left, by file name (see `alexlab.lost`); empty where all have ended together.
        stopped: the signal after which all ranks have stopped, or None.
        heard: the signal that this node's launcher has heard, or None.
    """

    attempt: int
    words: Mapping[str, str] = field(default_factory=dict)
    stopped: int | None = None
    heard: int | None = None


class Group(Protocol):
    """The nodes of a run, as one of them sees it."""

    number: int  # in the round that runs, and 0 of the first node always
    num_nodes: int
    address: str  # of this node, on the network where they meet
    causes: list[str]  # why the rounds before have ended; the first node knows
    follows: bool  # writes into the run folder of the first node, on a disk that they share

    def agreed(self, key: str, choose: Callable[[], Any]) -> Any:
        """What `choose` gives on the first node, on every node; plain data."""

    def next(self, report: Report | None, judge: Judge) -> Place:
        """Waits for the next round; raises what has ended the run."""

    def over(self) -> str | None:
        """Why the round that runs must end here, or None."""

    def leave(self, error: BaseException | None = None) -> None:
        """Takes part no more."""

    def forked(self) -> None:
        """Lets a forked process close what belongs to its parent."""


def opened(place: Place) -> Place:
    """The place of the first node, with a port for the ranks' store."""
    listener = socket.create_server((place.address, 0))
    return replace(place, port=listener.getsockname()[1], listener=listener)


def encoded(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def described(error: BaseException | None) -> dict[str, Any]:
    """An error as plain data; `ended` makes it an error again."""
    kind = FINISHED if error is None else type(error).__name__
    return {"kind": kind, "text": str(error), "signum": getattr(error, "signum", None)}


def ended(end: Mapping[str, Any]) -> AlexlabError | Stopped:
    """What the first node has ended with."""
    if end["kind"] == FINISHED:
        return RankError("the run has finished on the other nodes")
    if end["signum"] is not None:
        return Stopped(int(end["signum"]), agreed=True)
    known = getattr(errors, str(end["kind"]), None)
    if isinstance(known, type) and issubclass(known, AlexlabError):
        return known(str(end["text"]))
    return RankError(f"the first node has ended with {end['kind']}: {end['text']}")


def parsed(endpoint: str) -> tuple[str, int]:
    """HOST and PORT of HOST:PORT.

    Raises:
        ConfigError: when it is none.
    """
    host, colon, port = str(endpoint).rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"elastic.rendezvous must be HOST:PORT, HOST being the first node; got {endpoint}")
    return host.strip("[]"), int(port)


def close_copy(connection: socket.socket) -> None:
    """Closes this process's copy, though a file was made of it."""
    if connection.fileno() >= 0:
        os.close(connection.detach())
