"""Names of a run folder and of the files in it."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

MAX_TAG = 80  # characters of the readable part of a folder's name
BEST, LAST = Path("checkpoints/best.ckpt"), Path("checkpoints/last.ckpt")
EARLIER_LASTS = "step_*.ckpt"  # older checkpoints next to them, see callbacks.checkpoint
RUN_JSON, LOCK, CODE_DIFF = "run.json", ".lock", "code.diff"
EARLIER = ".earlier"  # files of failed attempts at a job
CHECKPOINT_KEY = "alexlab"  # entry of a checkpoint with config, choices, versions, classes and best scores
# Overrides that decide where jobs run, not what they compute.
LAUNCHER_OVERRIDES = ("launcher=", "launcher.", "hydra.launcher", "+hydra.launcher")
OUTPUT = "output.log"  # standard output of a job that runs in parallel with others
SLURM_LOG = "slurm.log"  # of a job on a cluster, a link to SLURM's log
LOG, METRICS, CURVES, MANIFEST = "train.log", "metrics.csv", "curves.png", "split.csv"
LOGS = (LOG, OUTPUT, SLURM_LOG)
STATISTICS, PREVIEW, LAYERS, SKIPPED = "statistics.json", "preview.png", "layers.csv", "skipped.csv"
NOT_FINITE = "not_finite_rank{rank}.csv"  # images of the step whose loss or gradient was not finite


def tag(overrides: Iterable[str]) -> str:
    """Return a readable name for a list of overrides that needs no quoting: `[A-Za-z0-9._-]`.

    >>> tag(["model=alexnet_half", "trainer.devices=2"])
    'model-alexnet_half_devices-2'
    """
    parts = []
    for override in overrides:
        if override.startswith(LAUNCHER_OVERRIDES):
            continue
        key, _, value = override.partition("=")
        key = key.split("@")[0].rsplit(".", 1)[-1]
        if os.sep in value:  # the end of a path is its most informative part
            value = value.strip("'\"").rstrip(os.sep).rsplit(os.sep, 1)[-1]
        parts.append(f"{key}-{value}" if value else key)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))
    readable = re.sub(r"-*_-*", "_", re.sub(r"-{2,}", "-", readable))
    return readable.strip("-._")[:MAX_TAG].rstrip("-._") or "defaults"


def create_folder(path: str | Path) -> Path:
    """Create a folder, with a number appended to its name if it exists, so that no two runs share one."""
    wanted = Path(path)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        candidate = wanted if number == 1 else wanted.with_name(f"{wanted.name}.{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise FileExistsError(f"{wanted} and 9,999 numbered variants exist")
