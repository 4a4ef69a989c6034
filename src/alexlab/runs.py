"""A run folder: how it is named, what its files are called. Imports no torch at its top."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

MAX_TAG = 80  # characters of the readable part of a folder's name
BEST, LAST = Path("checkpoints/best.ckpt"), Path("checkpoints/last.ckpt")
EARLIER_LASTS = "step_*.ckpt"  # beside them, with callbacks.checkpoint.keep
CARD, LOCK, DIFF = "run.json", ".lock", "code.diff"
EARLIER = ".earlier"  # what failed attempts at a job have left
CHECKPOINT_KEY = "alexlab"  # of what a checkpoint says of its run: config, choices, versions, classes, best scores
# Overrides that say where jobs run, not what they are.
LAUNCHER_WORDS = ("launcher=", "launcher.", "hydra.launcher", "+hydra.launcher")
OUTPUT = "output.log"  # what a job has printed that runs beside others
LOG, METRICS, CURVES, MANIFEST = "train.log", "metrics.csv", "curves.png", "split.csv"
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
    """This process's number among those of the run; 0 where there is only one."""
    return int(os.environ.get("RANK", "0")) if started_outside() else 0


def agreed(choose: Callable[[], str]) -> str:
    """What `choose` gives on rank 0, on every rank that torchrun has started; alone, what it gives here."""
    if not started_outside():
        return choose()
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    environment = os.environ
    key = f"alexlab/{environment['TORCHELASTIC_RUN_ID']}/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    # torchrun's agent serves this store until the ranks have ended.
    store = TCPStore(
        environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False, wait_for_workers=False
    )
    if rank() == 0:
        store.set(key, choose())
    return str(store.get(key).decode())
