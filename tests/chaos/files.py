"""Saves of checkpoints that are killed or run out of disk space."""

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
from chaos.harness import FORK, Result, Workspace

CLONE_NEWNS = 0x00020000  # <linux/sched.h>
OTHER = "/dev/shm"  # another file system than that of the run folder


def _checkpoint(number: int) -> dict[str, Any]:
    """Return a checkpoint of 8 MB."""
    return {"state_dict": {"weight": torch.full((2_000_000,), float(number))}, "global_step": number}


def _save_forever(io: Any, target: Path, started: Any) -> None:
    os.environ["TMPDIR"], tempfile.tempdir = OTHER, None
    number = 1
    while True:
        started.value = number
        io.save_checkpoint(_checkpoint(number), str(target))
        number += 1


def sigkill_in_save(workspace: Workspace, tries: int, rng: random.Random, io: Any = None) -> Result:
    """Kill a process while it saves a checkpoint, with the temporary folder on another file system."""
    ours = io is None
    folder = workspace.path("saves" if ours else "stock_saves")
    folder.mkdir()
    loadable = previous = 0
    for number in range(tries):
        target = folder / f"{number}.ckpt"
        AtomicCheckpointIO().save_checkpoint(_checkpoint(0), target)
        started = FORK.Value("i", 0)
        process = FORK.Process(target=_save_forever, args=(io or AtomicCheckpointIO(), target, started))
        process.start()
        while not started.value:
            time.sleep(0.0002)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        try:
            found = torch.load(target, weights_only=True)
            assert len(set(found["state_dict"]["weight"].tolist())) == 1
            loadable += 1
            previous += found["global_step"] < started.value
        except Exception:
            pass
        finally:
            target.unlink()
    unfinished = len(list(folder.iterdir()))
    remove_partial_checkpoints(folder)
    removed = unfinished - len(list(folder.iterdir()))
    for path in Path(OTHER).glob("tmp*"):
        path.unlink(missing_ok=True)
    return Result(
        "sigkill_in_save",
        "kill -9 during a save, with the temporary folder on another file system: a checkpoint can be loaded",
        loadable,
        tries,
        f"{previous} times the previous one; {removed} of {unfinished} unfinished files removed" if ours else "",
    )


def stock_sigkill_in_save(workspace: Workspace, tries: int, rng: random.Random) -> Result:
    """Do the same with Lightning's checkpoint IO."""
    return sigkill_in_save(workspace, tries, rng, TorchCheckpointIO())


def disk_full(workspace: Workspace, tries: int, rng: random.Random) -> Result | None:
    """Save to a disk of 20 MB with less free space than a checkpoint needs; None without the right to mount one."""
    folder = workspace.path("disk")
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
            free_bytes = rng.randint(0, 7_900_000)
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            (folder / "filler").write_bytes(bytes(max(0, free - free_bytes)))
            try:
                AtomicCheckpointIO().save_checkpoint(_checkpoint(number + 1000), target)
            except DiskError as error:
                reported = str(target) in str(error) and "MB are free" in str(error)
                intact = torch.load(target, weights_only=True)["global_step"] == number
                result.value += (
                    reported and intact and {path.name for path in folder.iterdir()} == {"last.ckpt", "filler"}
                )
            (folder / "filler").unlink()

    process = FORK.Process(target=on_a_small_disk)
    process.start()
    process.join()
    if result.value < 0:
        return None
    return Result(
        "disk_full",
        "full disk: the previous checkpoint is intact; the error names path and free space",
        result.value,
        tries,
    )
