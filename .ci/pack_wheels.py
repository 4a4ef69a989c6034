"""Pack the wheels that a machine for `make gpu` lacks, for a machine without network: `make gpu-wheels`.

Such a machine has Python 3.12 with torch, torchvision, lightning, torchmetrics, tensorboard, scikit-learn, rich and matplotlib,
and what these depend on. The other dependencies of pyproject.toml go to .gpu/wheels, in the versions of requirements.lock.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
WHEELS = ROOT / ".gpu/wheels"
PYTHON = "3.12"
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "any")
# These and dependencies of torch (jinja2, markupsafe, numpy), torchvision (pillow), lightning (pyyaml) and scikit-learn (scipy).
PRESENT = {
    *("torch", "torchvision", "lightning", "torchmetrics", "tensorboard", "scikit-learn", "rich", "matplotlib"),
    *("jinja2", "markupsafe", "numpy", "pillow", "pyyaml", "scipy"),
}
INDIRECT = ("antlr4-python3-runtime",)  # needed by hydra-core and omegaconf, published as source only
MAX_MB = 20


def main() -> None:
    """Download or build the wheels and check their size."""
    wanted = [*missing(), *INDIRECT]
    versions = pinned(ROOT / "requirements.lock")
    WHEELS.mkdir(parents=True, exist_ok=True)
    for old in WHEELS.glob("*.whl"):
        old.unlink()
    for name in wanted:
        pip(name, versions[name])
    wheels = sorted(WHEELS.glob("*.whl"))
    size_mb = sum(path.stat().st_size for path in wheels) / 1e6
    if len(wheels) != len(wanted) or size_mb > MAX_MB:
        sys.exit(f"{len(wanted)} wheels of at most {MAX_MB} MB are needed; got {len(wheels)} of {size_mb:.1f} MB")
    for path in wheels:
        print(path.relative_to(ROOT))
    print(f"{size_mb:.1f} MB")


def missing() -> list[str]:
    """Return the dependencies of the package that the machine lacks."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = [re.split(r"[^\w.-]", line)[0].lower() for line in content["project"]["dependencies"]]
    return [name for name in names if name not in PRESENT]


def pinned(path: Path) -> dict[str, str]:
    """Return the version of each package in a lock file."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", path.read_text(), re.MULTILINE))


def pip(name: str, version: str) -> None:
    """Download the wheel of a package, or build it from source if it is pure Python and has none."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--quiet", "--no-deps", f"{name}=={version}"]
    if name in INDIRECT:
        subprocess.run([*command, "wheel", "--wheel-dir", str(WHEELS), *options], check=True)
        return
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    target = ["--only-binary=:all:", f"--python-version={PYTHON}", *platforms]
    subprocess.run([*command, "download", "--dest", str(WHEELS), *target, *options], check=True)


if __name__ == "__main__":
    main()
