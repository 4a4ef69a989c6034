"""Runs and sweeps from Python, and the arguments that they pass to the command."""

import os
import signal
import sys
import threading
import time
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import alexlab
from alexlab.api import training
from alexlab.api.training import Runs, TrainedRun
from alexlab.cli.arguments import quote_paths
from alexlab.errors import ConfigError, DataError
from alexlab.records.results import read_run
from support.runs import TINY, write_record

tiny = dict(
    override.split("=", 1) for override in TINY if "model.widths" not in override and "fc_widths" not in override
)
SIZES = {"model": {"widths": [4, 8, 8, 8, 8], "fc_widths": (16,)}}


@pytest.mark.slow
def test_training_on_two_devices_returns_the_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["model.widths=[4,8,8,8,8]", "model.fc_widths=[16]"]
    options = {"data": {"root": images, "cache_dir": tmp_path / "cache"}, "trainer.devices": 2, "trainer.max_epochs": 2}
    run = alexlab.train(*TINY, *sizes, options)
    assert isinstance(run, TrainedRun)
    assert run.folder.is_relative_to(tmp_path / "outputs/train")
    assert (run.status, run.config["trainer"]["devices"], len(run.history)) == ("finished", 2, 2)
    assert run.scores["best/count"] == 11 and 0 <= run.scores["test/top1"] <= 1
    assert run.load(device="cpu").evaluate().top1 == pytest.approx(run.scores["test/top1"])
    output = capsys.readouterr().out
    assert "epoch 2/2" in output and "Traceback" not in output
    assert list(map(repr, alexlab.runs(run.folder))) == [repr(run)]


@pytest.mark.slow
def test_a_sweep_returns_all_runs_and_a_failed_one_does_not_stop_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["model.widths=[4,8,8,8,8]", "model.fc_widths=[16]"]
    runs = alexlab.sweep(*TINY, *sizes, {"data.root": images, "optimizer.lr": [np.float64(0.001), 1e35]}, "seed=1,2")
    assert [run.status for run in runs] == ["finished", "finished", "failed", "failed"]
    assert [(row["optimizer.lr"], row["seed"]) for row in runs.rows()][:2] == [(0.001, 1), (0.001, 2)]
    assert runs.best.status == "finished"
    assert runs.verdict().startswith("all runs: val top-1") or "0.001" in runs.verdict()
    assert runs.report(tmp_path / "report").read_text().startswith("<!doctype html>")
    assert len(alexlab.runs()) == len(alexlab.runs("outputs/**")) == 4
    with pytest.raises(DataError, match="no such folder"):
        alexlab.train("data.root=/no where")
    with pytest.raises(ConfigError) as caught:
        alexlab.sweep(*TINY, {"data.root": images, "trainer.max_epochs": [-7, -8]})
    assert len(str(caught.value).splitlines()) >= 2, "a line per invalid job"


@pytest.mark.slow
def test_an_interruption_stops_the_run_with_a_checkpoint(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupt() -> None:
        while not list(tmp_path.glob("outputs/**/last.ckpt")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(KeyboardInterrupt, match=r"to continue, use resume=.*outputs/train"):
        alexlab.train(*TINY, {"data.root": images, "trainer.max_epochs": 5000})
    watcher.join()
    (run,) = alexlab.runs()
    assert run.status == "interrupted"


@pytest.mark.parametrize(
    ("override", "argument"),
    [
        ("a=b", ["a=b"]),
        ({"trainer": {"max_epochs": 2, "devices": 1}}, ["trainer.max_epochs=2", "trainer.devices=1"]),
        ({"optimizer.lr": 1e-3}, ["optimizer.lr=0.001"]),
        ({"optimizer.lr": np.float32(0.5)}, ["optimizer.lr=0.5"]),
        ({"trainer.deterministic": True, "data.cache": None}, ["trainer.deterministic=true", "data.cache=null"]),
        ({"model": "alexnet_half"}, ["model=alexnet_half"]),
        ({"callbacks": ["default", "ema"]}, ["callbacks=[default,ema]"]),
        ({"model.widths": np.array([4, 8])}, ["model.widths=[4,8]"]),
        ({"data.root": Path("/my cats, dogs")}, ["data.root=/my cats, dogs"]),
        ({"note": "two words"}, ["note='two words'"]),
        ({"note": "it's 100"}, ["note='it\\'s 100'"]),
        ({"note": "true"}, ["note='true'"]),
        ({"elastic": {}}, ["elastic={}"]),
    ],
)
def test_dicts_become_overrides(override: Any, argument: list[str]) -> None:
    assert training._to_arguments([override]) == argument


@pytest.mark.parametrize(
    ("override", "argument"),
    [
        ({"seed": [1, 2]}, "seed=1,2"),
        ({"seed": range(3)}, "seed=0,1,2"),
        ({"seed": [1]}, "seed=choice(1)"),
        ({"model.widths": [[4, 8], [8, 8]]}, "model.widths=[4,8],[8,8]"),
        ({"data.root": ["/a, b", Path("/c")]}, "data.root=choice('/a, b','/c')"),
        ({"model": ["alexnet", "nin"]}, "model=alexnet,nin"),
        ({"note": ["a", "b, c"]}, "note=choice(a,'b, c')"),
    ],
)
def test_lists_in_a_sweep_are_values(override: Any, argument: str) -> None:
    assert training._to_arguments([override], swept=True) == [argument]
    (swept,) = [OverridesParser.create().parse_override(each) for each in quote_paths(["-m", argument])[1:]]
    assert len([*swept.sweep_iterator()]) == len([*next(iter(override.values()))])


def test_malformed_overrides_are_named() -> None:
    with pytest.raises(ConfigError, match="an override must be 'KEY=VALUE' or a dict; got int"):
        training._to_arguments([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="a value must be a str, path, number, bool, None, list or dict; got object"):
        training._to_arguments([{"seed": object()}])
    with pytest.raises(ConfigError, match="seed must have at least one value to sweep over"):
        training._to_arguments([{"seed": []}], swept=True)


def test_runs_are_a_table(trained_run: Path) -> None:
    runs = Runs([read_run(trained_run)])
    (row,) = runs.rows()
    assert {"seed", "val/top1", "test/top1", "status", "folder"} <= row.keys()
    frame = runs.to_pandas()
    assert frame.loc[0, "val/top1"] == row["val/top1"] and list(frame.columns) == list(row)
    assert len(runs) == 1 and runs[0].folder == trained_run and repr(runs[0]) in repr(runs)
    with pytest.raises(ConfigError, match="no run found"):
        alexlab.runs("/no where")


@pytest.mark.parametrize("name", ["my", "~/my"])
def test_runs_and_models_find_the_code_in_config_dir_from_another_folder(
    name: str, trained_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def predict() -> None:
        monkeypatch.chdir(tmp_path)
        run, model = alexlab.runs(trained_run, config_dir=name)[0], alexlab.load(trained_run, config_dir=name)
        monkeypatch.chdir("/")
        for each in (run.load(), model):
            each.predict(images / "test/ant")
        assert run.config_dir == tmp_path / "my"

    copy_context().run(predict)  # trusted folders belong to a context


def test_runs_are_found_where_the_commands_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALEXLAB_OUTPUTS", raising=False)
    for name in ("outputs", "other", "third"):
        write_record(tmp_path / name / "train/day/run")
    assert [run.folder for run in alexlab.runs()] == [tmp_path / "outputs/train/day/run"]
    (tmp_path / ".env").write_text("ALEXLAB_OUTPUTS=other\n")
    assert [run.folder for run in alexlab.runs()] == [tmp_path / "other/train/day/run"]
    monkeypatch.setenv("ALEXLAB_OUTPUTS", "third")
    assert [run.folder for run in alexlab.runs()] == [tmp_path / "third/train/day/run"]


def test_runs_are_found_after_a_change_of_the_folder(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained_run.parent)
    (run,) = alexlab.runs(trained_run.name)
    model = alexlab.load(f"{trained_run.name}/checkpoints/best.ckpt", device="cpu")
    monkeypatch.chdir(tmp_path)
    assert run.load(device="cpu").classes == model.classes
    assert model._trained.run_dir == trained_run


def test_the_best_run_needs_scores() -> None:
    with pytest.raises(DataError, match="the best run needs a validated run"):
        _ = Runs([]).best
