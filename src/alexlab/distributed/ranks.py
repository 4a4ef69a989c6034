"""The ranks of a run: how many there are, and what they agree on. Imports no torch at its top.

A rank has the environment variables of torchrun, whatever started it (`alexlab.distributed.rendezvous`), and a store on
rank 0 or in its parent that is new in every attempt.
"""

import hashlib
import json
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from alexlab.distributed.environment import RUN_ID

OWN_RUN_ID = "alexlab"  # of ranks that torchrun did not start
VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR"),
    *("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE", RUN_ID),
)
LONGEST = timedelta(
    hours=1
)  # for which a rank waits for another one before the training, which may measure or pack images
NODE_MARKER = ".first_node"  # by which a node sees whether it shares the disk of the first
CHUNK = 1 << 24  # bytes of a file that are sent at once

store: Any = None  # of this attempt; on rank 0 it is the server too


def rank_variables(
    *, rank: int, local_size: int, num_nodes: int, address: str, port: int, attempt: int = 0
) -> dict[str, str]:
    """Return the variables of a rank whose ranks are numbered node by node."""
    node, local_rank = divmod(rank, local_size)
    world_size = local_size * num_nodes
    values = (rank, world_size, local_rank, local_size, node, num_nodes, address, port, attempt, True, OWN_RUN_ID)
    return {name: str(value) for name, value in zip(VARIABLES, values, strict=True)}


def is_distributed() -> bool:
    """Return whether this process is a rank: one of several, or started by torchrun."""
    return RUN_ID in os.environ


def clear_environment() -> None:
    """Remove the variables that make this process a rank."""
    for name in VARIABLES:
        os.environ.pop(name, None)


def rank() -> int:
    """Return the global rank; 0 in a process that is no rank."""
    return int(os.environ["RANK"]) if is_distributed() else 0


def world_size() -> int:
    """Return the number of ranks."""
    return int(os.environ["WORLD_SIZE"]) if is_distributed() else 1


def num_nodes() -> int:
    """Return the number of nodes that the ranks run on."""
    return int(os.environ["GROUP_WORLD_SIZE"]) if is_distributed() else 1


def broadcast(key: str, choose: Callable[[], Any]) -> Any:
    """Return on every rank what `choose` returns on rank 0, plain data.

    Args:
        key: a name that is used once in an attempt.
        choose: called on rank 0 only.
    """
    if not is_distributed():
        return choose()
    shared = _store()
    if rank() == 0:
        shared.set(key, json.dumps(choose()))
    return json.loads(shared.get(key))


def all_gather(key: str, own: Any) -> list[Any]:
    """Return what each rank gives, plain data, in the order of the ranks."""
    if not is_distributed():
        return [own]
    shared = _store()
    shared.set(f"{key}/{rank()}", json.dumps(own))
    return [json.loads(shared.get(f"{key}/{other}")) for other in range(world_size())]


def _store() -> Any:
    global store
    if store is None:  # a rank of our own launcher, whose parent serves it
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False)
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    store.set_timeout(LONGEST)
    return PrefixStore("alexlab", store)


def broadcast_run_dir(claim: Callable[[], str]) -> str:
    """Return the run folder: what `claim` returns on rank 0, or the folder of an earlier attempt under the same torchrun.

    Nodes that do not share the disk of the first get the same relative path on their own.
    """
    if not is_distributed():
        return claim()
    memory = _memory()
    known = all_gather("known folder", memory.read_text() if memory and memory.is_file() else None)
    several = num_nodes() > 1

    def first() -> dict[str, str]:
        name, nonce = next(filter(None, known), None) or claim(), uuid.uuid4().hex
        Path(name).mkdir(parents=True, exist_ok=True)
        if several:
            Path(name, NODE_MARKER).write_text(nonce)
        return {"name": name, "path": os.path.abspath(name), "nonce": nonce}

    found = broadcast("folder", first)
    folder = str(found["name"])
    if rank() > 0:
        folder = known[rank()] or folder
        with suppress(OSError):
            if not several or Path(found["path"], NODE_MARKER).read_text() == found["nonce"]:
                folder = found["path"]
        Path(folder).mkdir(parents=True, exist_ok=True)
    if memory is not None and os.environ["LOCAL_RANK"] == "0":
        memory.write_text(os.path.abspath(folder))
    return folder


def _memory() -> Path | None:
    """Return the file in which a node keeps the run folder for further attempts under the same torchrun; None without torchrun.

    The id of a run is no key by itself: it is `none` unless --rdzv-id is given, and people give the same one again.
    """
    if os.environ[RUN_ID] == OWN_RUN_ID:
        return None
    agent = os.getppid()
    with suppress(OSError):  # Linux: the time at which it was started, since process numbers come back
        started = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
        name = hashlib.sha256(f"{os.environ[RUN_ID]} {agent} {started}".encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir(), f"alexlab_torchrun_{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return folder / name
    return None  # or the folder is somebody else's, who could lead the run elsewhere


def forget_run_dir() -> None:
    """Remove what `broadcast_run_dir` has kept for further attempts."""
    memory = _memory() if is_distributed() and os.environ["LOCAL_RANK"] == "0" else None
    if memory is not None:
        memory.unlink(missing_ok=True)


def broadcast_file(path: Path, key: str) -> None:
    """Copy a file of rank 0 to the nodes that lack it; called by all ranks.

    Args:
        path: the same on all nodes. If rank 0 has no such file, it is removed on the others.
        key: a name that is used once in an attempt.

    Raises:
        DiskError: if it cannot be written.
    """
    import torch
    from torch import distributed

    from alexlab.runs.atomic import write_atomic

    digests = all_gather(f"{key} digests", file_digest(path))
    if len({*digests}) == 1:
        return
    if not digests[0]:
        path.unlink(missing_ok=True)
        return
    receives = os.environ["LOCAL_RANK"] == "0" and digests[rank()] != digests[0]
    with _gloo_group(key) as group:

        def copy(target: BinaryIO | None) -> None:
            with path.open("rb") if rank() == 0 else nullcontext() as source:
                size = torch.tensor([path.stat().st_size if source else 0])
                distributed.broadcast(size, 0, group)
                for start in range(0, int(size), CHUNK):
                    chunk = torch.empty(min(CHUNK, int(size) - start), dtype=torch.uint8)
                    if source:
                        source.readinto(chunk.numpy().data)
                    distributed.broadcast(chunk, 0, group)
                    if target:
                        target.write(chunk.numpy().data)

        if receives:
            write_atomic(path, copy)
        else:
            copy(None)
        distributed.barrier(group)


@contextmanager
def _gloo_group(key: str) -> Iterator[Any]:
    """Yield a group of all ranks that sends from the CPU's memory, also before the Trainer has made its own."""
    from torch import distributed
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    if distributed.is_initialized():
        group = distributed.new_group(backend="gloo")
        yield group
        distributed.destroy_process_group(group)
    else:
        distributed.init_process_group("gloo", store=PrefixStore(key, store), rank=rank(), world_size=world_size())
        yield None
        distributed.destroy_process_group()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; an empty string if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
