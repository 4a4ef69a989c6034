"""Rendezvous of ranks that torchrun started, in a store of each attempt.

In torchrun's own store restarted ranks would read the addresses of their predecessors and hang (pytorch/pytorch#135712).
"""

import json
import os
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from alexlab.distributed import ranks
from alexlab.distributed.addresses import (
    check_same_machine,
    first_node_address,
    resolve,
    source_address,
    unreachable,
)
from alexlab.distributed.environment import RankEnvironment
from alexlab.errors import RankError
from alexlab.output.escape import print_line

POLL_S = 0.05
ADDRESS_KEY = "alexlab/address"  # in torchrun's store: address and port of the store of this attempt


def join_torchrun(env: RankEnvironment, *, num_nodes: int, timeout_s: float) -> str:
    """Create or find the store of this attempt; return the address of this node on the network of the ranks.

    Rank 0 publishes its address in torchrun's store. A rank that reads an outdated address cannot connect, and retries.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    resolved = resolve(env.address)
    if resolved.startswith("127.") and os.environ["GROUP_RANK"] != "0":
        check_same_machine(env.address, env.port, resolved=resolved)
    is_master = env.rank == 0 and not shares_store
    try:
        outer = TCPStore(
            env.address, env.port, is_master=is_master, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )
    except RuntimeError as error:
        raise unreachable(env, timeout_s, error) from error
    outer.set(f"alexlab/seen/{env.rank}", resolved)
    if env.rank == 0:
        other_nodes = range(int(os.environ["LOCAL_WORLD_SIZE"]), env.world_size)
        address = first_node_address(resolved, outer, other_nodes, timeout_s=timeout_s)
        port = _serve(address, timeout_s)
        ranks.stores.kept_open.append(outer)
        outer.set(ADDRESS_KEY, json.dumps([address, port]))
    else:
        address, port = _connect(outer, env, timeout_s)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    joined = ranks.num_nodes()
    # PyTorch 2.15 publishes the address of rank 0 only once in a shared store.
    if env.rank == 0 and joined < num_nodes and shares_store:
        print_line(
            f"{joined} of {num_nodes} nodes have joined; for others to join later, start torchrun with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
            file=sys.stderr,
        )
    return address if env.rank == 0 else source_address(address)


def _serve(address: str, timeout_s: float) -> int:
    """Serve the store of this attempt on a free port of an address, and return the port."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server((address, 0))
    port = int(listener.getsockname()[1])
    ranks.stores.current = TCPStore(
        *(address, port),
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )
    return port


def _connect(outer: Any, env: RankEnvironment, timeout_s: float) -> tuple[str, int]:
    """Connect to the store that rank 0 serves; return its address and port."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    timeout = timedelta(seconds=timeout_s)
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        with suppress(RuntimeError, OSError):  # outdated: its process has exited
            if outer.check([ADDRESS_KEY]):
                address, port = json.loads(outer.get(ADDRESS_KEY))
                socket.create_connection((address, port), timeout=2.0).close()  # TCPStore would retry for long
                ranks.stores.current = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
                return str(address), int(port)
        time.sleep(POLL_S)
    raise RankError(
        f"rank 0 must appear within elastic.timeout_s={timeout_s:g}; rank {env.rank} did not reach it: check that it runs and "
        "that no firewall blocks its ports"
    )
