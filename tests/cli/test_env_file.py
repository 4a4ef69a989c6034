"""Settings of a machine: `.env`, the folder of all runs, and `local/default.yaml`."""

import os
from pathlib import Path

import pytest

from alexlab.cli.arguments import pop_outputs
from alexlab.cli.env_file import load_env_file
from alexlab.cli.resume import find_resumption
from alexlab.errors import ConfigError
from alexlab.records.layout import OUTPUTS, outputs_dir
from support.commands import run


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FIRST", "SECOND", "THIRD", OUTPUTS):
        monkeypatch.setenv(name, "x")  # so that it is restored
        monkeypatch.delenv(name)


def test_variables_that_are_set_win(monkeypatch):
    monkeypatch.setenv("SECOND", "mine")
    Path(".env").write_text("# of this machine\nFIRST='a b'\nexport SECOND=2\nTHIRD=${FIRST}/c\n")
    load_env_file()
    assert [os.environ[name] for name in ("FIRST", "SECOND", "THIRD")] == ["a b", "mine", "a b/c"]


@pytest.mark.parametrize("name", ["run.json", "sweep.json"])
def test_the_file_of_a_run_folder_is_ignored(name):
    Path(".env").write_text("FIRST=1\n")
    Path(name).write_text("{}")
    load_env_file()
    assert "FIRST" not in os.environ


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"FIRST=1\nSECOND\n", r"\.env, line 2: must be NAME=VALUE or a comment"),
        (b"=1\n", r"\.env, line 1: must be"),
        (b"FIRST=\xff\n", r"\.env must be a readable UTF-8 file of lines NAME=VALUE; 'utf-8' codec"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(content, message):
    Path(".env").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_env_file()
    assert "FIRST" not in os.environ


def test_the_folder_of_all_runs(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert outputs_dir() == Path("outputs")
    assert pop_outputs(["a=1", "outputs=~/b c"]) == ["a=1"]
    assert outputs_dir() == Path("/home/me/b c")
    assert pop_outputs(["outputs='d'"]) == []
    monkeypatch.setenv(OUTPUTS, "~/e")
    assert (pop_outputs([]), outputs_dir()) == ([], Path("/home/me/e"))
    with pytest.raises(ConfigError, match="resume=last needs a run in /home/me/e/train"):
        find_resumption(["resume=last"])
    with pytest.raises(ConfigError, match="outputs must be a folder: outputs=DIR"):
        pop_outputs(["outputs="])


@pytest.mark.slow
def test_commands_read_all_of_them_before_the_config_is_composed(tmp_path):
    """`local/default.yaml` comes after the experiment and before the command line; a typed outputs= wins over `.env`."""
    (tmp_path / ".env").write_text("ALEXLAB_OUTPUTS=runs of me\nFIRST=7\n")
    local = tmp_path / "my/conf/local/default.yaml"
    local.parent.mkdir(parents=True)
    local.write_text(
        "# @package _global_\nseed: ${oc.decode:${oc.env:FIRST}}\ntrainer:\n  devices: 2\n  max_epochs: 3\n"
    )
    own = ("--config-dir=my", "experiment=torchvision_alexnet", "trainer.max_epochs=4")
    composed = run("train", "--cfg=job", "--resolve", *own, cwd=tmp_path).stdout
    assert "\nseed: 7\n" in composed and "  devices: 2\n" in composed and "  max_epochs: 4\n" in composed
    done = run("summary", "model=alexnet_quarter", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs of me/summary/*/*_model-alexnet_quarter/summary.csv"))) == 1
    done = run("summary", "model=alexnet_quarter", "outputs=other", cwd=tmp_path)
    assert len(list(tmp_path.glob("other/summary/*/*_model-alexnet_quarter/summary.csv"))) == 1, done.stderr
    (tmp_path / ".env").write_text("FIRST\n")
    refused = run("train", "--cfg=job", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (1, ".env, line 1: must be NAME=VALUE or a comment\n")
