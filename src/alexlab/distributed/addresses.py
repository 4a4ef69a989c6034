"""Addresses and network interfaces through which ranks on several nodes reach each other."""

import fcntl
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from alexlab.distributed.environment import LOOPBACK, RankEnvironment
from alexlab.errors import ConfigError, RankError

SIOCGIFADDR = 0x8915 if sys.platform.startswith("linux") else 0xC0206921  # <linux/sockios.h>; <sys/sockio.h> of macOS
CONNECT_S = 10.0


def resolve(address: str) -> str:
    """Return the IPv4 address of MASTER_ADDR.

    Raises:
        ConfigError: if it cannot be resolved.
    """
    try:
        return socket.gethostbyname(address)
    except OSError as error:
        raise ConfigError(f"MASTER_ADDR must be the address of the first node; {address}: {error}") from error


def check_same_machine(address: str, port: int, *, resolved: str) -> None:
    """Check that a MASTER_ADDR that resolves to a loopback address on another node leads to the first one.

    Raises:
        ConfigError: if nothing listens there.
    """
    with suppress(OSError):
        socket.create_connection((resolved, port), timeout=CONNECT_S).close()
        return
    raise ConfigError(
        f"MASTER_ADDR={address} must lead to the first node from every node; on {socket.gethostname()} it is {resolved}, where "
        "nothing listens. Start torchrun with --local-addr=IP on each node, or with --master-addr=IP"
    )


def first_node_address(resolved: str, store: Any, other_nodes: Iterable[int], *, timeout_s: float) -> str:
    """Return the address of this node, the first one, on the network of the ranks.

    Debian and Ubuntu map the host name to 127.0.1.1 on the machine itself, so a rank on another node is asked.

    Args:
        resolved: MASTER_ADDR as this node resolves it.
        store: holds MASTER_ADDR as each rank resolves it.
        other_nodes: ranks on other nodes.
        timeout_s: how long to wait for the first of them.
    """
    if not other_nodes:
        return LOOPBACK
    if not resolved.startswith("127."):
        return source_address(resolved)
    store.set_timeout(timedelta(seconds=timeout_s))
    found = str(store.get(f"alexlab/seen/{next(iter(other_nodes))}").decode())
    return LOOPBACK if found.startswith("127.") else found


def source_address(target: str) -> str:
    """Return the source address of packets from this machine to another one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        unsent.connect((target, 9))
        return str(unsent.getsockname()[0])


def interface(address: str) -> str:
    """Return the name of the network interface with an IPv4 address, such as `lo` or `eth0`.

    Raises:
        RankError: if no interface has it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # the interface has no address
                reply = fcntl.ioctl(query, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(reply[20:24]) == address:
                    return name
    raise RankError(
        f"a network interface of this machine must have the address {address}, which leads to MASTER_ADDR; none has it: set "
        "MASTER_ADDR to an address that this machine can reach"
    )


def unreachable(env: RankEnvironment, wait_s: float, error: Exception | None) -> RankError:
    """Return the error of a rank that cannot reach rank 0, or of rank 0 that cannot use its port."""
    reason = f": {str(error).splitlines()[0]}" if error is not None else ""
    if env.rank == 0:
        return RankError(f"port {env.port} must be free for rank 0{reason}; set another MASTER_PORT")
    place = f"MASTER_ADDR={env.address} MASTER_PORT={env.port}"
    return RankError(
        f"rank 0 must answer at {place} within {wait_s:g} s{reason}; check that it runs and that no firewall blocks the port"
    )
