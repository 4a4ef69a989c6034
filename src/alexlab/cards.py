"""The identity card of a run, `run.json`: what ran, on what, and what became of it. Imports no torch.

The card is whole at any moment: it is written to a temporary name and put in its place. A run that was killed leaves the
status `running`, and no process that holds its lock: readers call it interrupted.
"""

import fcntl
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from alexlab.data.folder import Splits
from alexlab.data.listing import END, Paths
from alexlab.disk import write_durably
from alexlab.errors import ConfigError
from alexlab.machine import num_cores
from alexlab.runs import CARD, DIFF, LOCK

RUNNING, FINISHED, PRUNED, FAILED, INTERRUPTED = "running", "finished", "pruned", "failed", "interrupted"
PACKAGES = (
    "alexlab",
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "numpy",
    "pillow",
)
MAX_DIFF = 5_000_000  # bytes of code.diff
MAX_SIZES = 10_000  # files of a split whose size goes into the fingerprint, evenly spaced
CODE_DIR = Path(__file__).parents[2]


@dataclass
class Card:
    """The card of one run folder.

    Args:
        run_dir: the folder.
    """

    run_dir: Path

    @property
    def path(self) -> Path:
        return self.run_dir / CARD

    def read(self) -> dict[str, Any]:
        """What the card says; a run that says it is running without anybody holding its lock is interrupted.

        Raises:
            ConfigError: when there is no card, or it is none.
        """
        try:
            found: dict[str, Any] = json.loads(self.path.read_text())
        except FileNotFoundError as error:
            raise ConfigError(f"{self.run_dir} must be the folder of a run; it has no {CARD}") from error
        except ValueError as error:
            raise ConfigError(f"{self.path} is no card of a run: {error}") from error
        if found["status"] == RUNNING and holder(self.run_dir) is None:
            found |= {"status": INTERRUPTED, "reason": "the process was ended without a word"}
        return found

    def update(self, **values: Any) -> None:
        """Changes entries.

        Raises:
            DiskError: when the disk has no room for them; the card is what it was.
        """
        try:
            found = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            found = {}
        write_durably(self.path, (json.dumps(found | values, indent=2) + "\n").encode())

    def start(self, config: dict[str, Any], choices: dict[str, str]) -> None:
        """Begins the card of a new run, or another attempt of a resumed one."""
        commit, diff = code_state(CODE_DIR)
        if diff:
            (self.run_dir / DIFF).write_bytes(diff[:MAX_DIFF])
        attempt = {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "start_s": time.time(),
            "pid": os.getpid(),
            "code": {"commit": commit, "dirty": bool(diff)},
            "versions": versions(),
            "hardware": hardware(),
        }
        before = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.update(
            status=RUNNING,
            reason=None,
            **(attempt | {"start_s": before.get("start_s", attempt["start_s"])}),
            seed=config["seed"],
            config=config,
            config_hash=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
            choices=choices,
            attempts=[
                *before.get("attempts", []),
                {key: attempt[key] for key in ("command", "start_s", "pid", "code")},
            ],
        )

    def finish(self, status: str, *, reason: str | None = None, exit_code: int = 0, **values: Any) -> None:
        """Says what became of the run."""
        end_s = time.time()
        start_s = json.loads(self.path.read_text())["attempts"][-1]["start_s"]
        self.update(status=status, reason=reason, exit_code=exit_code, end_s=end_s, elapsed_s=end_s - start_s, **values)


class Lock:
    """Holds a run folder for as long as this process lives; the system gives it back however the process ends.

    Raises:
        ConfigError: when another process holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        try:
            self.file = (run_dir / LOCK).open("a+")
        except OSError as error:
            raise ConfigError(
                f"the run folder must be writable; cannot write in {run_dir}: {error.strerror}"
            ) from error
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            process = self.file.read().strip()
            self.file.close()
            raise ConfigError(f"a run folder has one writer; process {process} is writing {run_dir}") from None
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        # Forked loader processes have a copy of the file: the lock itself is given back, not only this handle closed.
        fcntl.flock(self.file, fcntl.LOCK_UN)
        self.file.close()


def holder(run_dir: Path) -> str | None:
    """The number of the process that holds a run folder, or None."""
    try:
        with (run_dir / LOCK).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "?"
    except OSError:
        return None
    return None


def code_state(folder: Path) -> tuple[str | None, bytes]:
    """The commit that a checkout is at and what differs from it, untracked files by name; (None, b"") outside of git."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=True, timeout=30
        ).stdout

    try:
        commit = git("rev-parse", "HEAD").decode().strip()
        status = git("status", "--porcelain", "--", "src", "conf")
        return commit, (status + git("diff", "HEAD", "--", "src", "conf")) if status else b""
    except (OSError, subprocess.SubprocessError):
        return None, b""


def versions() -> dict[str, str]:
    """Versions of Python and of what a result can depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that is not installed
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine, without asking CUDA."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"system": platform.platform(), "cpu": model, "cores": num_cores(), "memory_gb": round(memory / 1e9, 1)}


def data_state(splits: Splits) -> dict[str, Any]:
    """Counts, classes and a fingerprint of the files: their paths, labels and sizes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, split in splits.named():
        sizes = [split.size(row) for row in split.sample(MAX_SIZES)]
        digest.update(f"{name}:{len(split)}:".encode())
        digest.update(np.asarray(split.labels).tobytes())
        digest.update(np.array(sizes, np.int64).tobytes())
        if isinstance(split.paths, Paths) and split.paths.rows is None:
            digest.update(split.paths.block.tobytes())
        else:
            digest.update(b"".join(os.fsencode(path) + END for path in split.paths))
    return {
        "counts": {name: len(split) for name, split in splits.named()},
        "classes": len(splits.classes),
        "fingerprint": digest.hexdigest(),
    }


def peak_memory_mb() -> dict[str, float]:
    """The largest memory of this process and of the largest of its children, in MB."""
    unit = 1024 if sys.platform != "darwin" else 1
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"process": round(own * unit / 1e6, 1), "largest_child": round(children * unit / 1e6, 1)}
