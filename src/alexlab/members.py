"""Which machines take part in a run, and in which round of it. Imports no torch.

The first node, the one whose address is `elastic.rendezvous`, keeps a book and has the run folder; every other node holds a
connection to it. A round is one start of the ranks on all nodes that take part; where a node is lost, or a further one
comes, the next round begins from the last checkpoint. PyTorch's launcher starts and watches the ranks of each node; its own
rendezvous makes any node the first, tells of a lost link only when the ranks have waited in vain, and lets ranks that are
started again find the addresses of lost ones.

Messages are lines of JSON, one answer to each. Nothing else is understood, but nobody is asked who they are: the port belongs
on a network of one's own, as do those of PyTorch.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alexlab.errors import ConfigError, RankError
from alexlab.first_node import First
from alexlab.other_node import Other
from alexlab.rounds import FIRST, HERE, Judge, Place, Report, opened, parsed
from alexlab.signals import Stopped

log = logging.getLogger(__name__)

SIOCGIFADDR = 0x8915  # <linux/sockios.h>


class Alone:
    """A run on one machine.

    Args:
        max_restarts: how often lost ranks are started again.
    """

    number, num_nodes, address, follows = FIRST, 1, HERE, False
    fits: Callable[[int], bool]

    def __init__(self, max_restarts: int = 0) -> None:
        self.max_restarts = max_restarts
        self.causes: list[str] = []

    def agreed(self, key: str, choose: Callable[[], Any]) -> Any:
        return choose()

    def next(self, report: Report | None, judge: Judge) -> Place:
        if report is None:
            return opened(Place(0))
        cause = Stopped(report.stopped) if report.stopped is not None else judge([report])
        if not isinstance(cause, RankError) or report.attempt >= self.max_restarts:
            raise cause
        self.causes.append(str(cause))
        log.warning("restart %d of %d, from the last checkpoint: %s", len(self.causes), self.max_restarts, cause)
        return opened(Place(report.attempt + 1))

    def over(self) -> None:
        return None

    def leave(self, error: BaseException | None = None) -> None:
        pass

    def forked(self) -> None:
        pass


Here = Alone | First | Other
here: Here = Alone()  # the group that this process belongs to


def is_first() -> bool:
    """Whether this process is, or belongs to, the first node."""
    return here.number == FIRST


def join_nodes(config: Mapping[str, Any]) -> None:
    """Meets the other nodes of a run of several, unless torchrun has done so; `here` is what came of it.

    Args:
        config: with the nodes `trainer` and `elastic`.

    Raises:
        ConfigError, RankError: as `gather`.
    """
    global here
    num_nodes, elastic = config["trainer"].get("num_nodes", 1), config.get("elastic", {})
    if "TORCHELASTIC_RUN_ID" in os.environ or num_nodes == 1 or elastic.get("rendezvous") is None:
        return
    if not isinstance(num_nodes, int) or not 1 <= (elastic["min_nodes"] or num_nodes) <= num_nodes:
        raise ConfigError(
            "elastic.min_nodes must be from 1 to trainer.num_nodes; "
            f"got trainer.num_nodes={num_nodes} elastic.min_nodes={elastic['min_nodes']}"
        )
    names = ("min_nodes", "max_restarts", "silence_s", "join_s", "timeout_s")
    here = gather(elastic["rendezvous"], num_nodes=num_nodes, **{name: elastic[name] for name in names})


def gather(
    endpoint: str,
    *,
    num_nodes: int,
    min_nodes: int | None,
    max_restarts: int,
    silence_s: float,
    join_s: float,
    timeout_s: float,
) -> First | Other:
    """Becomes the first node, where HOST of the endpoint is this machine, or joins it.

    Raises:
        ConfigError: when the endpoint is none, or its HOST is not known.
        RankError: when the first node does not answer.
    """
    host, port = parsed(endpoint)
    try:
        address = str(socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as error:
        raise ConfigError(f"elastic.rendezvous must be HOST:PORT; {host} is not known: {error.strerror}") from error
    try:
        listener = socket.create_server((address, port))
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            raise ConfigError(f"elastic.rendezvous: cannot listen at {endpoint}: {error.strerror}") from error
        return Other(f"{address}:{port}", timeout_s)
    return First(
        address,
        port,
        listener,
        num_nodes=num_nodes,
        min_nodes=min_nodes or num_nodes,
        max_restarts=max_restarts,
        silence_s=silence_s,
        join_s=join_s,
        timeout_s=timeout_s,
    )


@contextlib.contextmanager
def taking_part() -> Iterator[None]:
    """Leaves the group at the end, with the error where there is one: the others hear how it has ended."""
    global here
    try:
        yield
    except BaseException as error:
        here.leave(error)
        raise
    else:
        here.leave()
    finally:
        here = Alone()


def interface(address: str) -> str:
    """The name of the network interface that has an IPv4 address, such as `lo` or `eth0`. Linux only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    raise RankError(f"no network interface has the address {address}")
