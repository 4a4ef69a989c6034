"""Names of a run folder and of the files in it."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

MAX_TAG = 60  # characters of the readable part of a folder's name
BEST, LAST = Path("checkpoints/best.ckpt"), Path("checkpoints/last.ckpt")
EARLIER_LASTS = "step_*.ckpt"  # older checkpoints next to them, see callbacks.checkpoint
RUN_JSON, LOCK, CODE_DIFF = "run.json", ".lock", "code.diff"
SWEEP_JSON = "sweep.json"  # in the folder of a sweep
EARLIER = ".earlier"  # files of failed attempts at a job
# Entry of a checkpoint with the config, choices, classes, best scores, versions, code and images of its run.
CHECKPOINT_KEY = "alexlab"
MEAN_IMAGE = "mean_image"  # tensor in that entry, and in exported files
# Overrides that decide where jobs run, not what they compute.
LAUNCHER_OVERRIDES = ("launcher=", "launcher.", "hydra.launcher", "+hydra.launcher")
OUTPUTS = "ALEXLAB_OUTPUTS"  # environment variable, which the configs read too
LABEL_OVERRIDES = ("tags=", "note=")  # are in the run record and not in the folder's name
OUTPUT = "output.log"  # standard output of a job that runs in parallel with others
SLURM_LOG = "slurm.log"  # of a job on a cluster, a link to SLURM's log
LOG, METRICS, CURVES, MANIFEST = "train.log", "metrics.csv", "curves.png", "split.csv"
LOGS = (LOG, OUTPUT, SLURM_LOG)
PREDICTIONS = "predictions"  # folder of val.npz and test.npz, see alexlab.records.saved_predictions
STATISTICS, PREVIEW, LAYERS, SKIPPED = "statistics.json", "preview.png", "layers.csv", "skipped.csv"
MEAN_IMAGE_FILE = "mean_image.npy"
NOT_FINITE = "not_finite_rank{rank}.csv"  # images of the step whose loss or gradient was not finite


def outputs_dir() -> Path:
    """Return the folder of all runs: `outputs`, or what `outputs=DIR` or the variable ALEXLAB_OUTPUTS names."""
    return Path(os.environ.get(OUTPUTS) or "outputs")


def tag(overrides: Iterable[str]) -> str:
    """Return a readable name of at most MAX_TAG characters for overrides: letters and digits of any script, `.`, `_`, `-`.

    Swept keys come first, accents are dropped, and overrides that do not fit are left out.

    >>> tag(["model=alexnet_half", "optimizer.lr=0.1,0.01", "data.root=/data/étoiles"])
    'lr-0.1-0.01_model-alexnet_half_root-etoiles'
    """
    pairs = [
        override.lstrip("+~").partition("=")[::2]
        for override in overrides
        if not override.startswith((*LAUNCHER_OVERRIDES, *LABEL_OVERRIDES))
    ]
    name = ""
    for key, value in sorted(pairs, key=lambda pair: not _SWEPT.match(pair[1])):
        part = _part(key, value)
        if not name:
            name = part if len(part) <= MAX_TAG else part[:MAX_TAG].rpartition("-")[0] or part[:MAX_TAG]
        elif part and len(f"{name}_{part}") <= MAX_TAG:
            name = f"{name}_{part}"
    return name or "defaults"


# A list of values outside quotes and brackets, or a function of Hydra's grammar.
_SWEPT = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(|(?![\[{'\"])[^,]*,")
_LETTERS = str.maketrans({"ß": "ss", "ø": "o", "æ": "ae", "œ": "oe", "ł": "l", "đ": "d", "ð": "d", "þ": "th"})


def _part(key: str, value: str) -> str:
    """Return the part of a name for one override."""
    group, _, name = key.split("@")[0].rpartition(".")
    if name == "_target_":  # optimizer._target_=torch.optim.NAdam is optimizer-NAdam
        name, value = group.rpartition(".")[2], value.rpartition(".")[2]
    if os.sep in value:  # the end of a path is its most informative part
        value = value.strip("'\"").rstrip(os.sep).rsplit(os.sep, 1)[-1]
    if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", value):
        value = f"{float(value):.4g}"
    value = re.sub(r"^-(?=[\d.])", "minus", value)
    text = "".join(_plain(character) for character in unicodedata.normalize("NFC", f"{name}-{value}"))
    return re.sub(r"-*_[-_]*", "_", re.sub(r"-{2,}", "-", text)).strip("-._")


def _plain(character: str) -> str:
    """Return a Latin letter without its accent, other letters, digits and marks as they are, and `-` for anything else."""
    base = unicodedata.normalize("NFD", character)[0]
    if base.isascii():
        return base if base.isalnum() or base in "._-" else "-"
    if character.lower() in "ßøæœłđðþ":
        return character.lower().translate(_LETTERS)
    return character if character.isalnum() or unicodedata.category(character).startswith("M") else "-"


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
