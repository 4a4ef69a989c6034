"""A run folder: how it is named, what its files are called. Imports no torch at its top."""

import json
import os
import re
import uuid
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from alexlab import members

LONGEST = timedelta(hours=1)  # for which a rank waits for word of another one before the training
NONCE = ".first_node"  # by which a node sees whether its disk is that of the first
MAX_TAG = 80  # characters of the readable part of a folder's name
BEST, LAST = Path("checkpoints/best.ckpt"), Path("checkpoints/last.ckpt")
EARLIER_LASTS = "step_*.ckpt"  # beside them, with callbacks.checkpoint.keep
CARD, LOCK, DIFF = "run.json", ".lock", "code.diff"
EARLIER = ".earlier"  # what failed attempts at a job have left
CHECKPOINT_KEY = "alexlab"  # of what a checkpoint says of its run: config, choices, versions, classes, best scores
# Overrides that say where jobs run, not what they are.
LAUNCHER_WORDS = ("launcher=", "launcher.", "hydra.launcher", "+hydra.launcher")
OUTPUT = "output.log"  # what a job has printed that runs beside others
SLURM_LOG = "slurm.log"  # of one on a cluster, a link to what SLURM says of it
LOG, METRICS, CURVES, MANIFEST = "train.log", "metrics.csv", "curves.png", "split.csv"
LOGS = (LOG, OUTPUT, SLURM_LOG)
STATISTICS, PREVIEW, LAYERS, SKIPPED = "statistics.json", "preview.png", "layers.csv", "skipped.csv"
NOT_FINITE = "not_finite_rank{rank}.csv"  # the images of the step whose loss or gradient was not


def tag(overrides: Iterable[str]) -> str:
    """A readable name for a list of overrides, in characters that need no quoting anywhere: `[A-Za-z0-9._-]`.

    >>> tag(["model=alexnet_half", "trainer.devices=2"])
    'model-alexnet_half_devices-2'
    """
    parts = []
    for override in overrides:
        if override.startswith(LAUNCHER_WORDS):
            continue
        key, _, value = override.partition("=")
        key = key.split("@")[0].rsplit(".", 1)[-1]
        if os.sep in value:  # of a path, its end says most
            value = value.strip("'\"").rstrip(os.sep).rsplit(os.sep, 1)[-1]
        parts.append(f"{key}-{value}" if value else key)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))
    readable = re.sub(r"-*_-*", "_", re.sub(r"-{2,}", "-", readable))
    return readable.strip("-._")[:MAX_TAG].rstrip("-._") or "defaults"


def claim(path: str | Path) -> Path:
    """Makes a new folder of this name, or of this name and a number where it is taken: no two runs share one."""
    wanted = Path(path)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        candidate = wanted if number == 1 else wanted.with_name(f"{wanted.name}.{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise FileExistsError(f"{wanted} and 9,999 numbered neighbours exist")


def started_outside() -> bool:
    """Whether torchrun has started this process as one rank of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """This process's number among those of the run; 0 of the one that writes its folder, 1 of the launcher of a node that
    writes into another node's folder."""
    return int(os.environ.get("RANK", "0")) if started_outside() else int(members.here.follows)


def world() -> tuple[int, int]:
    """The number of ranks of the run, and of the nodes that they are on."""
    if not started_outside():
        return 1, 1
    ranks = int(os.environ["WORLD_SIZE"])
    return ranks, ranks // int(os.environ["LOCAL_WORLD_SIZE"])


def agreed(key: str, choose: Callable[[], Any]) -> Any:
    """What `choose` gives on the first node, or on rank 0 of those that torchrun has started, for all; plain data."""
    if not started_outside():
        return members.here.agreed(key, choose)
    store = ranks_store()
    if rank() == 0:
        store.set(key, json.dumps(choose()))
    return json.loads(store.get(key))


def agreed_folder(claim: Callable[[], str]) -> str:
    """The run folder: what `claim` gives on the first node, for every node that sees the same disk; what it gives here for one
    that does not, and for the other ranks of torchrun on such a node the same name."""

    several = max(world()[1], members.here.num_nodes) > 1

    def first() -> dict[str, str]:
        name, nonce = claim(), uuid.uuid4().hex
        if several:
            Path(name, NONCE).write_text(nonce)
        return {"name": name, "path": os.path.abspath(name), "nonce": nonce}

    found = agreed("folder", first)
    if rank() == 0 and members.is_first():
        return str(found["name"])
    try:
        shared = not several or Path(found["path"], NONCE).read_text() == found["nonce"]
    except OSError:
        shared = False
    if not started_outside():
        members.here.follows = shared
    if shared:
        return str(found["path"])
    if not started_outside():
        return claim()
    Path(found["name"]).mkdir(parents=True, exist_ok=True)
    return str(found["name"])


def ranks_store() -> Any:
    """Where the ranks of a run can leave word for each other; the launcher serves it until they have ended."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    environment = os.environ
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=LONGEST)
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"alexlab/{environment['TORCHELASTIC_RUN_ID']}/{attempt}", store)
