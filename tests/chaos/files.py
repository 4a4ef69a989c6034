"""Checkpoints whose writing is killed, or finds the disk full."""

import ctypes
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from alexlab.errors import DiskError
from alexlab.training.checkpoint_io import AtomicCheckpointIO, remove_partial_checkpoints
from chaos.harness import FORK, Figure, Place

CLONE_NEWNS = 0x00020000  # <linux/sched.h>
OTHER = "/dev/shm"  # a file system that is not that of the run folder


def _checkpoint(number: int) -> dict[str, Any]:
    """8 MB."""
    return {"state_dict": {"weight": torch.full((2_000_000,), float(number))}, "global_step": number}


def _write_for_ever(io: Any, target: Path, begun: Any) -> None:
    os.environ["TMPDIR"], tempfile.tempdir = OTHER, None
    number = 1
    while True:
        begun.value = number
        io.save_checkpoint(_checkpoint(number), str(target))
        number += 1


def killed_in_save(place: Place, tries: int, draw: random.Random, io: Any = None) -> Figure:
    """R4: SIGKILL while a checkpoint is written, the temporary folder being on another file system."""
    own = io is None
    folder = place.new("saves" if own else "stock_saves")
    folder.mkdir()
    loadable = old = 0
    for number in range(tries):
        target = folder / f"{number}.ckpt"
        AtomicCheckpointIO().save_checkpoint(_checkpoint(0), target)
        begun = FORK.Value("i", 0)
        process = FORK.Process(target=_write_for_ever, args=(io or AtomicCheckpointIO(), target, begun))
        process.start()
        while not begun.value:
            time.sleep(0.0002)
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.join()
        try:
            found = torch.load(target, weights_only=True)
            assert len(set(found["state_dict"]["weight"].tolist())) == 1
            loadable += 1
            old += found["global_step"] < begun.value
        except Exception:
            pass
        finally:
            target.unlink()
    left = len(list(folder.iterdir()))
    remove_partial_checkpoints(folder)
    swept = left - len(list(folder.iterdir()))
    for path in Path(OTHER).glob("tmp*"):
        path.unlink(missing_ok=True)
    return Figure(
        "R4",
        "kill -9 inside a save, temporary folder on another file system: a checkpoint can be loaded",
        loadable,
        tries,
        f"{old} times that before, {swept} of {left} unfinished files swept" if own else "",
    )


def stock_killed_in_save(place: Place, tries: int, draw: random.Random) -> Figure:
    """The same with Lightning's own writer."""
    return killed_in_save(place, tries, draw, TorchCheckpointIO())


def disk_full(place: Place, tries: int, draw: random.Random) -> Figure | None:
    """R5: a disk of 20 MB that has less room than a checkpoint needs; None where a disk cannot be made."""
    folder = place.new("disk")
    folder.mkdir()
    result = FORK.Value("i", -1)

    def on_a_small_disk() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, 0x44000, None):  # MS_REC | MS_PRIVATE
            return
        if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=20m"):
            return
        result.value = 0
        for number in range(tries):
            target = folder / "last.ckpt"
            AtomicCheckpointIO().save_checkpoint(_checkpoint(number), target)
            room = draw.randint(0, 7_900_000)
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            (folder / "filler").write_bytes(bytes(max(0, free - room)))
            try:
                AtomicCheckpointIO().save_checkpoint(_checkpoint(number + 1000), target)
            except DiskError as error:
                told = str(target) in str(error) and "MB are free" in str(error)
                intact = torch.load(target, weights_only=True)["global_step"] == number
                result.value += told and intact and {path.name for path in folder.iterdir()} == {"last.ckpt", "filler"}
            (folder / "filler").unlink()

    process = FORK.Process(target=on_a_small_disk)
    process.start()
    process.join()
    if result.value < 0:
        return None
    return Figure("R5", "full disk: the old checkpoint is intact, the error names path and room", result.value, tries)
