"""`make gpu` on a machine that has neither .venv nor all packages."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.runs import ROOT

spec = importlib.util.spec_from_file_location("pack_wheels", ROOT / ".ci/pack_wheels.py")
assert spec is not None and spec.loader is not None
pack_wheels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack_wheels)

# A stand-in for src/benchmark.py.
SCRIPT = """import sys
try:
    import packed
except ImportError:
    packed = None
print(packed is not None, sys.argv[1:])
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with `.ci/gpu` and a script that prints its arguments, in a folder whose name has a space."""
    root = tmp_path / "a checkout"
    for folder in (".ci", "src"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / ".ci/gpu", root / ".ci/gpu")
    (root / "src/benchmark.py").write_text(SCRIPT)
    return root


def run(checkout: Path, *arguments: str, **variables: str) -> str:
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": "", "OUT": "", **variables}
    command = [str(checkout / ".ci/gpu"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_packed_wheels_are_importable_without_being_installed(checkout: Path) -> None:
    assert run(checkout) == "False ['suite=gpu']", "it runs without wheels too"
    wheels = checkout / ".gpu/wheels"
    wheels.mkdir(parents=True)
    with zipfile.ZipFile(wheels / "packed-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("packed/__init__.py", "")
    for _ in range(2):
        found = run(checkout, "gpu.parts=[photographs,crops]", OUT="/results of/today")
        assert found == "True ['suite=gpu', 'hydra.run.dir=/results of/today/gpu', 'gpu.parts=[photographs,crops]']"


def test_a_virtual_environment_of_the_checkout_is_preferred(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    python = checkout / ".venv/bin/python"
    python.write_text('#!/bin/sh\necho "venv $@"\n')
    python.chmod(0o755)
    assert run(checkout, PYTHON="/nowhere") == "venv src/benchmark.py suite=gpu"


def test_packages_that_the_machine_lacks_are_packed() -> None:
    assert {"hydra-core", "omegaconf", "safetensors", "simplejpeg"} <= set(pack_wheels.missing())
    assert not {"torch", "numpy", "scipy"} & set(pack_wheels.missing())
    versions = pack_wheels.pinned(ROOT / "requirements.lock")
    assert {*pack_wheels.missing(), *pack_wheels.INDIRECT} <= versions.keys()


def test_no_module_imports_a_package_that_is_neither_present_nor_packed() -> None:
    """Imports at the top of a module; those of the optional packages ray and starlette are imported by their commands only."""
    names = {
        "scikit-learn": "sklearn",
        "pillow": "PIL",
        "pyyaml": "yaml",
        "hydra-core": "hydra",
        "python-dotenv": "dotenv",
    }
    known = {names.get(name, name) for name in (*pack_wheels.PRESENT, *pack_wheels.missing())}
    found = {
        name.split(".")[0]
        for path in (ROOT / "src/alexlab").rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        for name in imported(node)
    }
    assert {"torch", "hydra"} <= found
    assert found <= known | {"alexlab", "hydra_plugins", "ray", "starlette", *sys.stdlib_module_names}


def imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
