import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from alexlab.cli.invocation import parse_invocation
from alexlab.cli.rerun import Rerun, find_rerun
from alexlab.errors import ConfigError
from alexlab.records import record
from alexlab.records.record import RunRecord
from alexlab.tasks import train as task
from support.commands import run
from support.runs import composed

pytestmark = pytest.mark.slow

Train = Callable[..., float | None]


def again(first: Path, second: Path) -> None:
    rerun = find_rerun([f"rerun={first}", f"data.cache_dir={first.parent / 'cache'}"])
    assert rerun is not None
    second.mkdir()
    task.main(rerun.to_run(second))
    for line in rerun.compare(second):
        logging.info("%s", line)


def test_a_rerun_is_equal(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train("trainer.max_epochs=2", "augmentation=trivial", "data.mean=null")
    again(tmp_path / "run", tmp_path / "again")
    assert "the scores are equal" in caplog.text
    assert "difference: data" not in caplog.text
    assert RunRecord(tmp_path / "again").read()["config"] == RunRecord(tmp_path / "run").read()["config"]


def test_differences_are_reported(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(record, "code_state", lambda folder: ("a" * 40, b""))
    train()
    first = RunRecord(tmp_path / "run")
    found = first.read()
    first.update(
        scores=found["scores"] | {"best/loss": 5.0},
        versions=found["versions"] | {"torch": "2.0.0"},
        data=found["data"] | {"fingerprint": "other", "counts": {"train": 1}},
        hardware=found["hardware"] | {"cpu": "Z80"},
    )
    monkeypatch.setattr(record, "code_state", lambda folder: ("b" * 40, b"+ x"))
    again(tmp_path / "run", tmp_path / "again")
    for message in (
        "the scores differ: best/loss 5, now 1.",
        "difference: code: aaaaaaaaaaaa, now bbbbbbbbbbbb with changes",
        "difference: images: train 1, now train 24, val 11, test 7",
        "difference: version of torch: 2.0.0, now ",
        "difference: machine: Z80, ",
    ):
        assert message in caplog.text


def test_flags_are_refused_in_one_sentence() -> None:
    for typed, flag in ((["-m", "rerun=run"], "-m"), (["resume=run", "--cfg", "job"], "--cfg")):
        with pytest.raises(ConfigError, match=rf"take the config from the run's run.json; got {flag}; leave it out"):
            parse_invocation("train", typed)


def test_reruns_in_the_same_second_have_their_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = composed(*Rerun(tmp_path / "first", {}, {}).arguments())
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.run.dir = "outputs/train/day/12-00-00_rerun_first"
    for name in ("12-00-00_rerun_first", "12-00-00_rerun_first.2"):
        own = copy.deepcopy(config)
        instantiate(own.hydra.callbacks.run_dirs).on_run_start(own)
        (Path(own.hydra.run.dir) / ".hydra").mkdir()
        assert own.hydra.run.dir == f"outputs/train/day/{name}"


def test_a_run_without_scores(train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train()
    RunRecord(tmp_path / "run").update(status="failed", scores=None)
    again(tmp_path / "run", tmp_path / "again")
    assert "was failed and has no final scores to compare" in caplog.text


def test_error_messages(train: Train, tmp_path: Path) -> None:
    train()
    assert find_rerun(["seed=1"]) is None
    with pytest.raises(ConfigError, match="rerun= repeats a run unchanged, so seed=2 is refused"):
        find_rerun([f"rerun={tmp_path / 'run'}", "seed=2"])
    with pytest.raises(ConfigError):
        find_rerun([f"rerun={tmp_path / 'run'}", "--cfg", "job"])
    with pytest.raises(ConfigError, match=r"it has no run.json"):
        find_rerun([f"rerun={tmp_path}"])


def test_the_command(train: Train, tmp_path: Path) -> None:
    train()
    overrides = [f"rerun={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"]
    done = run("train", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the scores are equal" in done.stdout
    (folder,) = tmp_path.glob("outputs/train/*/*_rerun_run")
    assert RunRecord(folder).read()["command"] == ["train.py", *overrides]
