"""The identity card of a run, `run.json`: what ran, on what, and what became of it. Imports no torch.

The card is whole at any moment: it is written to a temporary name and put in its place. A run that was killed leaves the
status `running`, and no process that holds its lock: readers call it interrupted.
"""

import copy
import fcntl
import hashlib
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from alexlab.data.image_file import DEFAULT_DECODING, read_image
from alexlab.data.paths import END, PathArray
from alexlab.data.splits import Splits
from alexlab.distributed.hardware import num_cores
from alexlab.errors import ConfigError, DataError, ImageError
from alexlab.runs.atomic import write_atomic
from alexlab.runs.layout import CARD, DIFF, LOCK

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
MAX_BYTES = 50_000_000  # of run.json
MAX_DIFF = 5_000_000  # bytes of code.diff
MAX_SIZES = 10_000  # files of a split whose size goes into the fingerprint, evenly spaced
MAX_CONTENT = 64_000_000  # bytes of a split whose content goes into the fingerprint: 0.1 s
CODE_DIR = Path(__file__).parents[3]


class CorruptError(ConfigError):
    """A run.json that is not what a run writes."""


def checked(found: Any, path: Path) -> dict[str, Any]:
    """Return the content of a run.json with defaults for what an early end leaves out.

    Raises:
        CorruptError: when an entry is missing or of another kind: the file may be cut, or a stranger's.
    """
    if not isinstance(found, dict):
        raise CorruptError(f"{path} is corrupt: it must hold an object; got {type(found).__name__}")
    for name, default in DEFAULTS.items():
        if found.get(name) is None:
            found[name] = copy.deepcopy(default)
    for name, (kind, what) in SHAPE.items():
        if not kind(found.get(name)):
            raise CorruptError(f"{path} is corrupt: {name} must be {what}; got {str(found.get(name))[:100]!r}")
    return found


def _is_mapping(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(isinstance(item, kinds) and not isinstance(item, bool) for item in value.values())
    )


def _are_attempts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(attempt, dict)
        and isinstance(attempt.get("start_s"), int | float)
        and isinstance(attempt.get("command", []), list)
        for attempt in value
    )


_numbers = _is_mapping(int, float)
STATES = (RUNNING, FINISHED, PRUNED, FAILED, INTERRUPTED)
DEFAULTS: dict[str, Any] = {
    "attempts": [],
    "choices": {},
    "scores": {},
    "best": {},
    "last": {},
    "data": {"counts": {}},
    "versions": {},
    "code": {"commit": None, "dirty": False},
    "hardware": {"cpu": "unknown", "cores": "unknown"},
    "command": [],
    "seed": 0,
}
SHAPE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "status": (lambda value: value in STATES, f"one of {', '.join(STATES)}"),
    "config": (lambda value: isinstance(value, dict), "an object"),
    "choices": (_is_mapping(str), "an object of texts"),
    "attempts": (_are_attempts, "a list of objects with start_s"),
    "command": (
        lambda value: isinstance(value, list) and all(isinstance(word, str) for word in value),
        "a list of texts",
    ),
    "scores": (_numbers, "an object of numbers"),
    "best": (_numbers, "an object of numbers"),
    "last": (_numbers, "an object of numbers"),
    "data": (lambda value: isinstance(value, dict) and _numbers(value.get("counts", {})), "an object with counts"),
    "versions": (_is_mapping(str), "an object of texts"),
    "code": (
        lambda value: isinstance(value, dict) and {"commit", "dirty"} <= value.keys(),
        "an object with commit and dirty",
    ),
    "hardware": (
        lambda value: isinstance(value, dict) and {"cpu", "cores"} <= value.keys(),
        "an object with cpu and cores",
    ),
    "seed": (lambda value: isinstance(value, int), "a whole number"),
    "reason": (lambda value: value is None or isinstance(value, str), "a text"),
    "exit_code": (lambda value: value is None or isinstance(value, int), "a whole number"),
}


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
        """Return the entries; a run that is said to be running while no process holds its lock was interrupted.

        Raises:
            ConfigError: when there is no such file.
            CorruptError: when it is not what a run writes.
        """
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
            found = checked(json.loads(self.path.read_text(encoding="utf-8")), self.path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"{self.run_dir} must be the folder of a run; it has no {CARD}") from error
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, CorruptError):
                raise
            raise CorruptError(f"{self.path} is corrupt: {error}") from error
        if found["status"] == RUNNING and holder(self.run_dir) is None:
            found |= {"status": INTERRUPTED, "reason": "the process ended without saying why"}
        return found

    def _stored(self) -> dict[str, Any]:
        """The entries as they are in the file; none where it is missing or corrupt."""
        try:
            found: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def update(self, **values: Any) -> None:
        """Change entries.

        Raises:
            DiskError: when the disk has no room for them; the file is what it was.
        """
        write_atomic(self.path, (json.dumps(self._stored() | values, indent=2) + "\n").encode())

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
        before = self._stored()
        try:
            checked(before, self.path)
        except CorruptError:
            before = {}
            self.path.unlink(missing_ok=True)
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
        start_s = self._stored()["attempts"][-1]["start_s"]
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
    """Return the counts and classes of a data set, a fingerprint of its paths, labels and sizes, and one of its contents.

    The contents are those of at most MAX_CONTENT bytes of files, evenly spaced.
    """
    digest, contents = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for name, split in splits.items():
        rows = split.sample_indices(MAX_SIZES)
        sizes = [split.file_size(row) for row in rows]
        digest.update(f"{name}:{len(split)}:".encode())
        digest.update(np.asarray(split.labels).tobytes())
        digest.update(np.array(sizes, np.int64).tobytes())
        if isinstance(split.paths, PathArray) and split.paths.rows is None:
            digest.update(split.paths.block.tobytes())
        else:
            digest.update(b"".join(os.fsencode(path) + END for path in split.paths))
        if split.lengths is None:  # shards are checked by their own hashes when they are read
            every = max(1, -(-sum(sizes) // MAX_CONTENT))
            for row in rows[::every]:
                contents.update(_content(split.file_path(row)))
    return {
        "counts": {name: len(split) for name, split in splits.items()},
        "classes": len(splits.classes),
        "class_names": list(splits.classes),
        "fingerprint": digest.hexdigest(),
        "contents": contents.hexdigest(),
    }


def _content(path: str) -> bytes:
    """The bytes of an image; none of a file that cannot be read, which is reported when the run comes to it."""
    try:
        return read_image(path, DEFAULT_DECODING)
    except ImageError:
        return b""


def check_same_data(before: Mapping[str, Any], now: Mapping[str, Any], *, where: str) -> None:
    """Compare the images of a resumed run with those that it began with.

    Args:
        before: what `data_state` returned when the run began, or as much of it as must be the same.
        now: what it returns now.
        where: the images now, for the message.

    Raises:
        DataError: when they differ.
    """
    old, new = before.get("class_names", now["class_names"]), now["class_names"]
    if old != new:
        number, was, is_now = next(
            (n, *pair)
            for n, pair in enumerate(itertools.zip_longest(old, new, fillvalue="absent"))
            if pair[0] != pair[1]
        )
        lengths = ": in it" if len(new) == len(old) else f" has {len(new)} classes instead of {len(old)}:"
        raise DataError(
            f"a resumed run must have the classes that it began with, in their order; {where}{lengths} "
            f"class {number} is {is_now} instead of {was}. A new run can start from its weights: "
            "model.weights=RUN_DIR"
        )
    differing = [name for name in ("fingerprint", "contents") if before.get(name, now[name]) != now[name]]
    if not differing:
        return
    first = before.get("counts", {})
    counts = [
        f"{name} has {now['counts'].get(name, 0)} instead of {first.get(name, 0)}"
        for name in {**first, **now["counts"]}
        if now["counts"].get(name) != first.get(name)
    ]
    changed = "paths, labels or sizes" if "fingerprint" in differing else "contents"
    raise DataError(
        f"a resumed run must have the images that it began with; in {where} "
        f"{'the number of images differs: ' + ', '.join(counts) if counts else f'the {changed} of images differ'}. "
        "To resume with them all the same, add resume_on_changed_data=true"
    )


def peak_memory_mb() -> dict[str, float]:
    """The largest memory of this process and of the largest of its children, in MB."""
    unit = 1024 if sys.platform != "darwin" else 1
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"process": round(own * unit / 1e6, 1), "largest_child": round(children * unit / 1e6, 1)}
