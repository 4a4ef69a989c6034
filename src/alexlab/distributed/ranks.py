"""Ranks of a run: their number, and collectives on plain data that need no process group.

Every rank has torchrun's environment variables, regardless of its launcher (`alexlab.distributed.rendezvous`), and a store on
rank 0 or in its parent that is new in every attempt.
"""

import hashlib
import json
import os
import stat
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from alexlab.distributed.environment import RUN_ID

OWN_RUN_ID = "alexlab"  # run id of ranks that torchrun did not start
VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR"),
    *("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE", RUN_ID),
)
# Maximum time to wait for another rank, which may be computing statistics or packing images
TIMEOUT = timedelta(hours=1)
READ_TIMEOUT = timedelta(seconds=10)  # for which rank 0 waits until the others have read the gathered values
NODE_MARKER = ".first_node"  # file by which a node detects that it shares the disk of the first one


class Stores:
    """Stores of this process: the one of its process group, and others that late ranks read from.

    Attributes:
        current: TCPStore of this attempt, on rank 0 the server; None before the rendezvous.
        kept_open: stores served for ranks that arrive late.
    """

    def __init__(self) -> None:
        self.current: Any = None
        self.kept_open: list[Any] = []


stores = Stores()


def rank_variables(
    *, rank: int, local_size: int, num_nodes: int, address: str, port: int, attempt: int = 0
) -> dict[str, str]:
    """Return the environment variables of a rank; ranks are numbered node by node."""
    node, local_rank = divmod(rank, local_size)
    values = (rank, local_size * num_nodes, local_rank, local_size, node, num_nodes, address, port, attempt, True)
    return {name: str(value) for name, value in zip(VARIABLES, (*values, OWN_RUN_ID), strict=True)}


def started_by_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return is_distributed() and os.environ[RUN_ID] != OWN_RUN_ID


def is_distributed() -> bool:
    """Return whether this process is a rank: one of several, or started by torchrun."""
    return RUN_ID in os.environ


def clear_environment() -> None:
    """Remove the variables that make this process a rank."""
    for name in VARIABLES:
        os.environ.pop(name, None)


def rank() -> int:
    """Return the global rank; 0 in a process that is not a rank."""
    return int(os.environ["RANK"]) if is_distributed() else 0


def world_size() -> int:
    """Return the number of ranks."""
    return int(os.environ["WORLD_SIZE"]) if is_distributed() else 1


def num_nodes() -> int:
    """Return the number of nodes that the ranks run on."""
    return int(os.environ["GROUP_WORLD_SIZE"]) if is_distributed() else 1


def broadcast(key: str, choose: Callable[[], Any]) -> Any:
    """Return on every rank the result of `choose` on rank 0.

    Args:
        key: a name, unique within an attempt.
        choose: returns plain data; called on rank 0 only.
    """
    if not is_distributed():
        return choose()
    shared = _store()
    if rank() == 0:
        shared.set(key, json.dumps(choose()))
    return json.loads(shared.get(key))


def all_gather(key: str, value: Any) -> list[Any]:
    """Return the values of all ranks, by rank.

    Args:
        key: a name, unique within an attempt.
        value: plain data of this rank.
    """
    if not is_distributed():
        return [value]
    shared = _store()
    shared.set(f"{key}/{rank()}", json.dumps(value))
    values = [json.loads(shared.get(f"{key}/{other}")) for other in range(world_size())]
    # Rank 0 may serve the store and exit because of what it read, so the others must have read it, too.
    if shared.add(f"{key}/readers", 1) == world_size():
        shared.set(f"{key}/read", "")
    if rank() == 0:
        with suppress(RuntimeError):  # another rank has died
            shared.wait([f"{key}/read"], READ_TIMEOUT)
    return values


def _store() -> Any:
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    if stores.current is None:  # a rank of our own launcher, whose parent serves the store
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        stores.current = TCPStore(address, port, is_master=False, wait_for_workers=False)
    stores.current.set_timeout(TIMEOUT)
    return PrefixStore("alexlab", stores.current)


def broadcast_run_dir(claim: Callable[[], str]) -> str:
    """Return the run folder: the result of `claim` on rank 0, or the folder of an earlier attempt under the same torchrun.

    Nodes that do not share the disk of the first one get the same relative path on their own disks.
    """
    if not is_distributed():
        return claim()
    memory = _run_dir_file()
    known = all_gather("known folder", memory.read_text() if memory and memory.is_file() else None)

    def choose() -> dict[str, str]:
        name, nonce = next(filter(None, known), None) or claim(), uuid.uuid4().hex
        Path(name).mkdir(parents=True, exist_ok=True)
        if num_nodes() > 1:
            Path(name, NODE_MARKER).write_text(nonce)
        return {"name": name, "path": os.path.abspath(name), "nonce": nonce}

    chosen = broadcast("folder", choose)
    run_dir = str(chosen["name"])
    if rank() > 0:
        run_dir = known[rank()] or run_dir
        with suppress(OSError):
            if num_nodes() == 1 or Path(chosen["path"], NODE_MARKER).read_text() == chosen["nonce"]:
                run_dir = chosen["path"]
        Path(run_dir).mkdir(parents=True, exist_ok=True)
    if memory is not None and os.environ["LOCAL_RANK"] == "0":
        memory.write_text(os.path.abspath(run_dir))
    return run_dir


def _run_dir_file() -> Path | None:
    """Return the file in which a node keeps the run folder for further attempts under the same torchrun; None without torchrun.

    The id of a run is not a sufficient key: it is `none` unless --rdzv-id is given, and users reuse it.
    """
    if os.environ[RUN_ID] == OWN_RUN_ID:
        return None
    agent = os.getppid()
    with suppress(OSError):  # Linux: pids are reused, so the start time of the agent is part of the key
        started = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
        name = hashlib.sha256(f"{os.environ[RUN_ID]} {agent} {started}".encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir(), f"alexlab_torchrun_{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return folder / name
    return None  # not Linux, or another user owns the folder and could redirect the run


def forget_run_dir() -> None:
    """Remove the file that `broadcast_run_dir` wrote for further attempts."""
    memory = _run_dir_file() if is_distributed() and os.environ["LOCAL_RANK"] == "0" else None
    if memory is not None:
        memory.unlink(missing_ok=True)
