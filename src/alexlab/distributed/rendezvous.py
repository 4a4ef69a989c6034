"""Rendezvous of ranks that another launcher started.

torchrun, srun, mpirun and anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, such as a Kubernetes PyTorchJob, are
normalized to torchrun's variables and a store on rank 0 that is new in every attempt.
"""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from alexlab.distributed import ranks
from alexlab.distributed.addresses import first_node_address, interface, resolve, source_address, unreachable
from alexlab.distributed.environment import LOOPBACK, TORCHRUN, RankEnvironment, detect_rank
from alexlab.distributed.torchrun import join_torchrun
from alexlab.errors import ConfigError
from alexlab.output.escape import print_line

POLL_S = 0.05
PEER_TIMEOUT_S = 10.0  # how long a single-process run waits for the other ranks that its environment mentions
REFUSAL_KEY = "alexlab/refusal"


def join(trainer: Mapping[str, Any], *, timeout_s: float) -> None:
    """Join the other ranks if this process was started as one of several; afterwards `ranks.is_distributed()` is true.

    Variables left over in a shell do not affect a single-process run: if no other rank appears, they are removed.

    Args:
        trainer: the `trainer` node of the config.
        timeout_s: how long to wait for the other ranks.

    Raises:
        ConfigError: if the config requests another number of ranks.
        RankError: if another rank does not appear.
    """
    env = detect_rank()
    if env is None or ranks.stores.current is not None:
        return
    if env.launcher == TORCHRUN:
        address = join_torchrun(env, num_nodes=int(trainer["num_nodes"]), timeout_s=timeout_s)
    else:
        from alexlab.distributed.devices import num_ranks

        local = num_ranks(accelerator=trainer["accelerator"], devices=trainer["devices"])
        found = _join_master(env, local_size=local, num_nodes=int(trainer["num_nodes"]), timeout_s=timeout_s)
        if found is None:
            ranks.clear_environment()
            return
        address = found
    network = interface(address)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", network)  # otherwise gloo resolves the host name, often to 127.0.1.1
    if ranks.num_nodes() > 1:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", network)


def _join_master(env: RankEnvironment, *, local_size: int, num_nodes: int, timeout_s: float) -> str | None:
    """Join at MASTER_ADDR:MASTER_PORT; return the address of this node, or None if this process turns out to be the only one."""
    expected = local_size * num_nodes
    if not env.address or not env.port:
        if expected > 1:
            raise ConfigError(
                f"MASTER_ADDR and MASTER_PORT must be the address of rank 0, since there are {env.world_size} ranks according to "
                f"{env.launcher}; they are not set"
            )
        _print_ignored(env, "MASTER_ADDR and MASTER_PORT are not set")
        return None
    wait_s = timeout_s if expected == env.world_size else PEER_TIMEOUT_S
    store = _connect(env, wait_s)
    if store is None:
        if expected == 1:
            _print_ignored(env, f"rank 0 does not answer at {env.address}:{env.port}")
            return None
        raise unreachable(env, wait_s, None)
    mismatch = _mismatch(env, local_size=local_size, num_nodes=num_nodes)
    resolved = resolve(env.address) if expected > 1 else LOOPBACK
    store.set(f"alexlab/seen/{env.rank}", resolved)
    if store.add(f"alexlab/arrivals/{env.rank}", 1) > 1:
        mismatch = f"every rank must be started once; there are two with rank {env.rank}"
    store.set(f"alexlab/arrived/{env.rank}", mismatch)
    if env.rank > 0:
        refusal: str | None = _read_refusal(store, env, wait_s)
    else:
        refusal = _publish_refusal(store, env, mismatch, wait_s, alone=expected == 1)
    if refusal is None:
        ranks.stores.kept_open.append(store)  # a late rank reads there that rank 0 trains alone
        return None
    if refusal:
        raise ConfigError(refusal)
    ranks.stores.current = store
    os.environ.update(
        ranks.rank_variables(
            rank=env.rank, local_size=local_size, num_nodes=num_nodes, address=env.address, port=env.port
        )
    )
    if env.rank >= local_size:
        return source_address(env.address)
    return first_node_address(resolved, store, range(local_size, env.world_size), timeout_s=timeout_s)


def _mismatch(env: RankEnvironment, *, local_size: int, num_nodes: int) -> str:
    """Return why a rank contradicts its config; an empty string if it does not."""
    if local_size * num_nodes != env.world_size:
        return (
            f"trainer.devices x trainer.num_nodes must equal the world size, {env.world_size} according to {env.launcher}; got "
            f"{local_size} x {num_nodes}"
        )
    if env.local_rank not in (None, env.rank % local_size) or env.local_size not in (None, local_size):
        return (
            f"ranks must be numbered node by node, trainer.devices={local_size} on each; got rank {env.rank} with local rank "
            f"{env.local_rank} of {'unknown' if env.local_size is None else env.local_size}"
        )
    return ""


def _publish_refusal(store: Any, env: RankEnvironment, mismatch: str, wait_s: float, *, alone: bool) -> str | None:
    """On rank 0, return why the run is refused and publish it: an empty string if it is not, None if no other rank appeared."""
    others = [f"alexlab/arrived/{other}" for other in range(1, env.world_size)]
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s:
        arrived = [other for other in others if store.check([other])]
        if len(arrived) == len(others) or (arrived and mismatch):
            break
        time.sleep(POLL_S)
    if alone and not arrived:
        store.set(REFUSAL_KEY, "rank 0 trains alone, with trainer.devices=1 and trainer.num_nodes=1")
        _print_ignored(env, f"no other rank appeared within {wait_s:g} s")
        return None
    mismatches = [mismatch, *(store.get(other).decode() for other in arrived)]
    refusal = next(filter(None, mismatches), "")
    if not refusal and len(arrived) < len(others):
        missing = min({*others} - {*arrived}).rpartition("/")[2]
        refusal = f"all {env.world_size} ranks must appear within {wait_s:g} s; rank {missing} did not"
    store.set(REFUSAL_KEY, refusal)
    if refusal:
        time.sleep(1.0)  # the store ends with this process; the others must read it first
    return refusal


def _read_refusal(store: Any, env: RankEnvironment, wait_s: float) -> str:
    try:
        store.wait([REFUSAL_KEY], timedelta(seconds=wait_s + PEER_TIMEOUT_S))
        return str(store.get(REFUSAL_KEY).decode())
    except RuntimeError as error:
        raise unreachable(env, wait_s, error) from error


def _connect(env: RankEnvironment, wait_s: float) -> Any:
    """Return the store at MASTER_PORT, which rank 0 serves; None if that fails.

    It is served on all interfaces, as in PyTorch: MASTER_ADDR may be the address of a Kubernetes service.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    is_master = env.rank == 0
    with suppress(RuntimeError):
        address = LOOPBACK if is_master else env.address
        timeout = timedelta(seconds=wait_s)
        return TCPStore(address, env.port, is_master=is_master, wait_for_workers=False, timeout=timeout)
    return None


def _print_ignored(env: RankEnvironment, reason: str) -> None:
    given = f"{env.launcher}, which started this process as rank {env.rank} of {env.world_size}"
    print_line(f"running alone and ignoring {given}: {reason}", file=sys.stderr)
