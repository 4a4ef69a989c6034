"""Rendezvous of ranks that alexlab did not start itself. Imports no torch at its top.

torchrun, srun, mpirun and whatever sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, such as a Kubernetes PyTorchJob, are
brought into one form: the variables of torchrun, and a store on rank 0 that is new in every attempt. In torchrun's own store
restarted ranks would read the addresses of their predecessors and hang (pytorch/pytorch#135712).
"""

import fcntl
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from alexlab.distributed import ranks
from alexlab.distributed.environment import LOOPBACK, TORCHRUN, RankEnvironment, detect_rank
from alexlab.errors import ConfigError, RankError
from alexlab.output.escape import print_line

POLL_S = 0.05
PEER_TIMEOUT_S = 10.0  # how long a single-process run waits for the other ranks that its environment mentions
SIOCGIFADDR = 0x8915  # <linux/sockios.h>
MEETING, REFUSAL = "alexlab/meeting", "alexlab/refusal"

_kept: list[Any] = []  # stores that stay open: a late rank reads there that rank 0 trains alone


def join(trainer: Mapping[str, Any], *, timeout_s: float) -> None:
    """Meet the other ranks if this process was started as one of several; from then on `ranks.is_distributed()` is true.

    Variables left in a shell do not disturb a run of one process: if no other rank appears, they are removed.

    Args:
        trainer: the node of the config.
        timeout_s: how long to wait for the other ranks.

    Raises:
        ConfigError: if the config asks for another number of ranks.
        RankError: if another rank does not appear.
    """
    start = detect_rank()
    if start is None or ranks.store is not None:
        return
    if start.by == TORCHRUN:
        shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        address = _meet_under_torchrun(start, timeout_s)
        wanted, nodes = int(trainer["num_nodes"]), ranks.num_nodes()
        # PyTorch 2.15 publishes the address of rank 0 only once in a shared store.
        if start.rank == 0 and nodes < wanted and shares_store:
            print_line(
                f"{nodes} of {wanted} nodes take part; for others to join, torchrun needs "
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment",
                file=sys.stderr,
            )
    else:
        from alexlab.distributed.devices import num_ranks

        local = num_ranks(accelerator=trainer["accelerator"], devices=trainer["devices"])
        found = _meet_at(start, local_size=local, num_nodes=int(trainer["num_nodes"]), timeout_s=timeout_s)
        if found is None:
            ranks.clear_environment()
            return
        address = found
    network = interface(address)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", network)  # else gloo resolves the host name, often to 127.0.1.1
    if ranks.num_nodes() > 1:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", network)


def _meet_under_torchrun(start: RankEnvironment, timeout_s: float) -> str:
    """Make or find the store of this attempt; return the address of this node on the network of the ranks.

    Rank 0 publishes its address in torchrun's store. A rank that reads an outdated address cannot connect, and retries.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and start.rank == 0
    seen = _resolved(start)
    if seen.startswith("127.") and os.environ["GROUP_RANK"] != "0":
        _check_same_machine(start, seen)
    try:
        outer = TCPStore(start.address, start.port, is_master=serves, wait_for_workers=False, timeout=_delta(timeout_s))
    except RuntimeError as error:
        raise _unreachable(start, timeout_s, error) from error
    outer.set(f"alexlab/seen/{start.rank}", seen)
    if start.rank == 0:
        others = range(int(os.environ["LOCAL_WORLD_SIZE"]), start.world_size)
        address = _own_address(seen, outer, others, timeout_s)
        listener = socket.create_server((address, 0))
        port = int(listener.getsockname()[1])
        ranks.store = TCPStore(
            *(address, port),
            is_master=True,
            wait_for_workers=False,
            timeout=_delta(timeout_s),
            master_listen_fd=listener.detach(),
        )
        _kept.append(outer)
        outer.set(MEETING, json.dumps([address, port]))
    else:
        address, port = _announced(outer, start, timeout_s)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    return address if start.rank == 0 else _source_address(address)


def _check_same_machine(start: RankEnvironment, seen: str) -> None:
    """Raise ConfigError unless the first node, whose address is a loopback address here, is this machine too."""
    with suppress(OSError):
        socket.create_connection((seen, start.port), timeout=PEER_TIMEOUT_S).close()
        return
    raise ConfigError(
        f"MASTER_ADDR={start.address} must lead to the first node from every node; on {socket.gethostname()} it is {seen}, where "
        "nothing listens. Start torchrun with --local-addr=IP on each node, or with --master-addr=IP"
    )


def _announced(outer: Any, start: RankEnvironment, timeout_s: float) -> tuple[str, int]:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        with suppress(RuntimeError, OSError):  # outdated: its process has exited
            if outer.check([MEETING]):
                address, port = json.loads(outer.get(MEETING))
                socket.create_connection((address, port), timeout=2.0).close()  # TCPStore would try for long
                ranks.store = TCPStore(
                    address, port, is_master=False, wait_for_workers=False, timeout=_delta(timeout_s)
                )
                return str(address), int(port)
        time.sleep(POLL_S)
    raise RankError(f"rank 0 must appear within elastic.timeout_s={timeout_s:g}; rank {start.rank} has not met it")


def _meet_at(start: RankEnvironment, *, local_size: int, num_nodes: int, timeout_s: float) -> str | None:
    """Meet at MASTER_ADDR and MASTER_PORT; return the address of this node, or None if this process is alone after all."""
    expected = local_size * num_nodes
    if not start.address or not start.port:
        if expected > 1:
            raise ConfigError(
                f"MASTER_ADDR and MASTER_PORT must be the address of rank 0, since there are {start.world_size} ranks according "
                f"to {start.by}; they are not set"
            )
        _print_ignored(start, "MASTER_ADDR and MASTER_PORT are not set")
        return None
    wait_s = timeout_s if expected == start.world_size else PEER_TIMEOUT_S
    store = _store_at(start, wait_s)
    if store is None:
        if expected == 1:
            _print_ignored(start, f"rank 0 does not answer at {start.address}:{start.port}")
            return None
        raise _unreachable(start, wait_s, None)
    mismatch = _mismatch(start, local_size=local_size, num_nodes=num_nodes)
    seen = _resolved(start) if expected > 1 else LOOPBACK
    store.set(f"alexlab/seen/{start.rank}", seen)
    if store.add(f"alexlab/arrivals/{start.rank}", 1) > 1:
        mismatch = f"every rank must be started once; there are two with rank {start.rank}"
    store.set(f"alexlab/arrived/{start.rank}", mismatch)
    if start.rank > 0:
        refusal: str | None = _read_refusal(store, start, wait_s)
    else:
        refusal = _find_refusal(store, start, mismatch, wait_s, alone=expected == 1)
    if refusal is None:
        _kept.append(store)
        return None
    if refusal:
        raise ConfigError(refusal)
    ranks.store = store
    os.environ.update(
        ranks.rank_variables(
            rank=start.rank, local_size=local_size, num_nodes=num_nodes, address=start.address, port=start.port
        )
    )
    if start.rank >= local_size:
        return _source_address(start.address)
    return _own_address(seen, store, range(local_size, start.world_size), timeout_s)


def _mismatch(start: RankEnvironment, *, local_size: int, num_nodes: int) -> str:
    """Return why a rank does not fit its config; an empty string if it does."""
    if local_size * num_nodes != start.world_size:
        return (
            f"trainer.devices x trainer.num_nodes must equal the world size, {start.world_size} according to {start.by}; got "
            f"{local_size} x {num_nodes}"
        )
    if start.local_rank not in (None, start.rank % local_size) or start.local_size not in (None, local_size):
        return (
            f"ranks must be numbered node by node, trainer.devices={local_size} on each; got rank {start.rank} with local "
            f"rank {start.local_rank} of {'unknown' if start.local_size is None else start.local_size}"
        )
    return ""


def _find_refusal(store: Any, start: RankEnvironment, mismatch: str, wait_s: float, *, alone: bool) -> str | None:
    """Return why the run is refused and publish it to the other ranks: an empty string if it is not, None if no rank appeared."""
    others = [f"alexlab/arrived/{other}" for other in range(1, start.world_size)]
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s:
        arrived = [other for other in others if store.check([other])]
        if len(arrived) == len(others) or (arrived and mismatch):
            break
        time.sleep(POLL_S)
    if alone and not arrived:
        store.set(REFUSAL, "rank 0 trains alone, as its trainer.devices=1 and trainer.num_nodes=1 say")
        _print_ignored(start, f"no other rank appeared within {wait_s:g} s")
        return None
    mismatches = [mismatch, *(store.get(other).decode() for other in arrived)]
    refusal = next(filter(None, mismatches), "")
    if not refusal and len(arrived) < len(others):
        missing = min({*others} - {*arrived}).rpartition("/")[2]
        refusal = f"all {start.world_size} ranks must appear; rank {missing} has not within {wait_s:g} s"
    store.set(REFUSAL, refusal)
    if refusal:
        time.sleep(1.0)  # the store ends with this process; the others read it first
    return refusal


def _read_refusal(store: Any, start: RankEnvironment, wait_s: float) -> str:
    try:
        store.wait([REFUSAL], _delta(wait_s + PEER_TIMEOUT_S))
        return str(store.get(REFUSAL).decode())
    except RuntimeError as error:
        raise _unreachable(start, wait_s, error) from error


def _store_at(start: RankEnvironment, wait_s: float) -> Any:
    """Return the store at MASTER_PORT, which rank 0 serves; None if it cannot be had.

    It is served on all interfaces, as PyTorch does: MASTER_ADDR may be that of a Kubernetes service.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    master = start.rank == 0
    with suppress(RuntimeError):
        address = LOOPBACK if master else start.address
        return TCPStore(address, start.port, is_master=master, wait_for_workers=False, timeout=_delta(wait_s))
    return None


def _print_ignored(start: RankEnvironment, why: str) -> None:
    print_line(f"{start.by} say rank {start.rank} of {start.world_size}, which is ignored: {why}", file=sys.stderr)


def _unreachable(start: RankEnvironment, wait_s: float, error: Exception | None) -> RankError:
    reason = f": {str(error).splitlines()[0]}" if error is not None else ""
    what = "its port must be free" if start.rank == 0 else f"it must answer within {wait_s:g} s"
    return RankError(f"rank 0 is at MASTER_ADDR={start.address} MASTER_PORT={start.port}, and {what}{reason}")


def _resolved(start: RankEnvironment) -> str:
    try:
        return socket.gethostbyname(str(start.address))
    except OSError as error:
        raise ConfigError(f"MASTER_ADDR must be the address of the first node; {start.address}: {error}") from error


def _own_address(seen: str, store: Any, elsewhere: Iterable[int], timeout_s: float) -> str:
    """Return the address of the first node on the network of the ranks.

    Debian and Ubuntu map the name of a machine to 127.0.1.1 on that machine, so another node is asked what it sees.

    Args:
        seen: the address of the first node as it sees itself.
        store: where each rank says what it sees.
        elsewhere: the ranks on other nodes.
    """
    if not elsewhere:
        return LOOPBACK
    if not seen.startswith("127."):
        return _source_address(seen)
    store.set_timeout(_delta(timeout_s))
    found = str(store.get(f"alexlab/seen/{next(iter(elsewhere))}").decode())
    return LOOPBACK if found.startswith("127.") else found


def _source_address(target: str) -> str:
    """Return the address of this machine from which packets to another one go."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        unsent.connect((target, 9))
        return str(unsent.getsockname()[0])


def interface(address: str) -> str:
    """Return the name of the network interface that has an IPv4 address, such as `lo` or `eth0`; Linux only.

    Raises:
        RankError: if none has it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    raise RankError(f"no network interface has the address {address}")


def _delta(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
