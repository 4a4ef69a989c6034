"""The installed package: its files, its command, and the time of its import."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import alexlab
from alexlab.__main__ import COMMANDS, main
from support.runs import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("src", "conf", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    code = "import setuptools.build_meta as backend; print(backend.build_wheel('..'))"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_a_wheel_contains_every_config_and_template(installed: Path) -> None:
    for folder, target in ((ROOT / "conf", "conf"), (ROOT / "src/alexlab/pages/templates", "pages/templates")):
        names = {path.relative_to(folder) for path in folder.rglob("*.*") if path.parent.name != "local"}
        found = {
            path.relative_to(installed / "alexlab" / target) for path in (installed / "alexlab" / target).rglob("*.*")
        }
        assert found == names
    assert (installed / "alexlab/py.typed").is_file()
    starter = ROOT / "src/alexlab/cli/starter"
    names = {path.relative_to(starter) for path in starter.rglob("*.*") if path.suffix in (".py", ".yaml")}
    assert len(names) == 5
    assert all((installed / "alexlab/cli/starter" / name).is_file() for name in names)
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "alexlab = alexlab.__main__:main" in entry.read_text()


@pytest.mark.slow
def test_the_installed_command_composes_elsewhere(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "alexlab", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)

    composed = run("train", "--cfg", "job", "model=alexnet_half")
    assert composed.returncode == 0, composed.stderr
    assert "- 48" in composed.stdout
    code = "import alexlab; print(alexlab.__file__, alexlab.load)"
    located = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert located.stdout.startswith(str(installed)), located.stderr
    assert not list(tmp_path.iterdir())


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, alexlab; print(sorted({name.partition('.')[0] for name in sys.modules} & set(sys.argv)))"
    command = [sys.executable, "-c", code, "torch", "hydra", "numpy", "omegaconf"]
    done = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_has_a_script_and_a_line() -> None:
    assert sorted([*COMMANDS, "runs"]) == sorted(path.stem for path in (ROOT / "src").glob("*.py"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 0, "usage: alexlab COMMAND"),
        (["--help"], 0, "train       train a network on a folder of images"),
        (["--version"], 0, f"alexlab {alexlab.__version__}"),
        (["runs", "status=x"], 1, "status must be one of running, finished"),
        (["tran"], 1, "unknown command tran; did you mean train?"),
        (["x"], 1, "unknown command x; choose one of train, evaluate"),
    ],
)
def test_the_command_lists_its_commands(
    arguments: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["alexlab", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == code
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_unknown_attributes_are_named() -> None:
    with pytest.raises(AttributeError, match="module 'alexlab' has no attribute 'nope'"):
        _ = alexlab.nope
    assert {"load", "train", "sweep", "runs"} <= set(dir(alexlab))


def test_versions_and_targets_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert alexlab.__version__ == project["version"] == citation["version"]
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    pythons = yaml.safe_load(workflow)["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons[0] == project["requires-python"].removeprefix(">=")
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make (\w+)", workflow + (ROOT / ".devcontainer/devcontainer.json").read_text())
    assert targets and all(f"\n{target}:" in makefile for target in targets)
    for hook in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]:
        assert hook["entry"].removeprefix(".venv/bin/") in makefile.replace("$(BIN)/", "")
