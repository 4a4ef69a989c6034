"""Transfer of files from rank 0 to nodes without a shared disk."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from alexlab.distributed.ranks import all_gather, rank, stores, world_size

CHUNK_BYTES = 1 << 24  # of a file that is broadcast


def broadcast_file(path: Path, key: str) -> None:
    """Copy a file of rank 0 to the nodes that lack it; must be called by all ranks.

    Args:
        path: path of the file, the same on all nodes. If rank 0 lacks the file, it is removed on the others.
        key: a name, unique within an attempt.

    Raises:
        DiskError: if it cannot be written.
    """
    import torch
    from torch import distributed

    from alexlab.records.atomic import write_atomic

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
                for start in range(0, int(size), CHUNK_BYTES):
                    chunk = torch.empty(min(CHUNK_BYTES, int(size) - start), dtype=torch.uint8)
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
    """Yield a group of all ranks that sends from CPU memory, even before the Trainer has created its own."""
    from torch import distributed
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    if distributed.is_initialized():
        group = distributed.new_group(backend="gloo")
        yield group
        distributed.destroy_process_group(group)
    else:
        store = PrefixStore(key, stores.current)
        distributed.init_process_group("gloo", store=store, rank=rank(), world_size=world_size())
        yield None
        distributed.destroy_process_group()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; an empty string if it does not exist."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
