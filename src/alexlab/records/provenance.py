"""Provenance of a result: the commit of the code, the versions of packages, the memory used."""

import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
CODE_DIR = Path(__file__).parents[3]


def code_state(folder: Path) -> tuple[str | None, bytes]:
    """Return the commit of a checkout and its uncommitted changes (untracked files by name); (None, b"") outside git."""

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
    """Return the versions of Python and of the packages that a result can depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that is not installed
            continue
    return found


def peak_memory_mb() -> dict[str, float]:
    """Return the peak memory of this process and of the largest child that it has waited for, in MB."""
    unit = 1024 if sys.platform != "darwin" else 1
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"process": round(own * unit / 1e6, 1), "largest_child": round(children * unit / 1e6, 1)}
