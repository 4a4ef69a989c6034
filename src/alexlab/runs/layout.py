"""A run folder: how it is named, what its files are called. Imports no torch at its top."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

MAX_TAG = 80  # characters of the readable part of a folder's name
BEST, LAST = Path("checkpoints/best.ckpt"), Path("checkpoints/last.ckpt")
EARLIER_LASTS = "step_*.ckpt"  # beside them, with callbacks.checkpoint.keep_last
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
