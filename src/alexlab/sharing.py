"""A file of the first node for the others, whose disk may be another one."""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from alexlab.disk import write_durably
from alexlab.runs import rank, ranks_store

CHUNK = 1 << 24  # bytes that are under way at once


def shared_file(path: Path, key: str) -> None:
    """Puts the file that rank 0 has at this path at the same path on every node that lacks it; called by all ranks.

    Args:
        path: where it is, or is to be; where rank 0 has none, it is removed on the others too.
        key: a name that this round has used for no other file.

    Raises:
        DiskError: when it cannot be written.
    """
    nodes, local_ranks = int(os.environ["GROUP_WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    node, first_here = int(os.environ["GROUP_RANK"]), int(os.environ["LOCAL_RANK"]) == 0
    if nodes == 1:
        return
    store = ranks_store()
    if rank() == 0:
        store.set(f"{key}/digest", digest(path))
        lacking = [number for number in range(1, nodes) if store.get(f"{key}/{number}/lacks") == b"yes"]
        _give(path, store, key, lacking)
    elif first_here:
        wanted = store.get(f"{key}/digest").decode()
        lacks = wanted != "" and digest(path) != wanted
        store.set(f"{key}/{node}/lacks", "yes" if lacks else "no")
        if lacks:
            write_durably(path, partial(_take, store, key, node))
        elif not wanted:
            path.unlink(missing_ok=True)
    if first_here:
        store.set(f"{key}/{node}/there", "yes")
    elif local_ranks > 1:
        store.get(f"{key}/{node}/there")


def digest(path: Path) -> str:
    """The SHA-256 of a file; nothing where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _give(path: Path, store: Any, key: str, lacking: list[int]) -> None:
    """Hands a file out, piece by piece, as fast as the slowest takes it."""
    if not lacking:
        return
    for number, piece in enumerate(_pieces(path)):
        store.set(f"{key}/{number}", piece)
        for node in lacking:
            store.get(f"{key}/{node}/took/{number}")
        store.delete_key(f"{key}/{number}")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece
    yield b""


def _take(store: Any, key: str, node: int, file: BinaryIO) -> None:
    number, piece = 0, b"more"
    while piece:
        piece = store.get(f"{key}/{number}")
        file.write(piece)
        store.set(f"{key}/{node}/took/{number}", "yes")
        number += 1
