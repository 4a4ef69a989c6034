"""The ranks meet on 127.0.0.1: no socket of theirs or of their parent listens to the network."""

import os
import sys
from pathlib import Path

import pytest
import torch

from alexlab.launch import Limits, launch

LIMITS = Limits(timeout_s=60.0, shutdown_s=2)


def listening() -> set[str]:
    """Addresses on which this process or its parent listens, in the kernel's notation."""
    sockets = set()
    for pid in (os.getpid(), os.getppid()):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in sockets:  # 0A is LISTEN
                found.add(words[1].partition(":")[0])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's tables")
def test_nothing_listens_beyond_this_machine() -> None:
    def task() -> set[str]:
        torch.distributed.init_process_group("gloo")
        torch.distributed.barrier()
        found = listening()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        return found

    before = listening()
    assert launch(task, num_ranks=2, isolated=False, limits=LIMITS) - before == {"0100007F"}
