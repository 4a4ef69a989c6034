import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from alexlab.errors import ConfigError, PrunedError
from alexlab.runs.record import RunRecord
from alexlab.sweeps.pruning import Pruning, open_study
from alexlab.sweeps.slurm import Submitit
from hydra_plugins.alexlab_optuna import OptunaSweeper, distribution
from support.runs import ROOT, TINY, environment, rows


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("x=a,b", CategoricalDistribution(["a", "b"])),
        ("x=interval(0.5,2)", FloatDistribution(0.5, 2.0)),
        ("x=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("x=range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("x=range(0,3)", IntDistribution(0, 2)),
    ],
)
def test_search_spaces(override: str, expected: object) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert distribution(parsed) == expected


def test_words_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigCompositionException, match=re.escape("sweep=optuna needs the package optuna: pip install -e '.[optuna]'")
    ):
        OptunaSweeper(num_trials=1, seed=1).sweep(["x=a,b"])


def proposed(study: optuna.Study, num_trials: int) -> Iterator[tuple[int, dict[str, float]]]:
    spaces = {"x": FloatDistribution(0.0, 1.0), "y": CategoricalDistribution(["a", "b"])}
    return OptunaSweeper(num_trials=num_trials, seed=3).proposed(study, spaces)


def score(values: dict[str, float]) -> float:
    return float(values["x"]) + (values["y"] == "b")


def test_a_search_that_goes_on_proposes_what_it_would_have(tmp_path: Path) -> None:
    """Beyond Optuna's ten random trials, so that the estimator speaks too."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = open_study(tmp_path / "whole")
    uninterrupted = []
    for number, values in proposed(whole, 14):
        uninterrupted.append((number, values))
        whole.tell(number, score(values))
    first = open_study(tmp_path / "parts")
    found = []
    for number, values in proposed(first, 14):
        found.append((number, values))
        if number == 6:
            break  # killed while trial 6 runs
        first.tell(number, score(values))
    again = open_study(tmp_path / "parts")
    for number, values in proposed(again, 14):
        if number == 6:
            assert (number, values) == found.pop()
        found.append((number, values))
        again.tell(number, score(values))
    assert found == uninterrupted
    assert [trial.number for trial in again.trials] == list(range(14))


def test_a_trial_that_falls_behind_is_ended(
    train: Callable[..., float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials with perfect scores, then one that is no better than chance: it ends after the second epoch, on two ranks."""
    study = open_study(tmp_path)
    for _ in range(2):
        trial = study.ask()
        for epoch in range(1, 5):
            trial.report(1.1, step=epoch)
        study.tell(trial, 1.1)
    study.ask()
    monkeypatch.setattr("alexlab.sweeps.pruning.HydraConfig", FakeHydra(tmp_path, 2))
    words = (
        "sweep=optuna",
        "callbacks.pruning.min_trials=2",
        "callbacks.pruning.min_epochs=2",
        "trainer.max_epochs=4",
        "trainer.devices=2",
        "optimizer.lr=1e-6",
    )
    with pytest.raises(PrunedError, match="after epoch 2 its best val/top1 was below the median"):
        train(*words, isolated=True)
    card = RunRecord(tmp_path / "run").read()
    assert (card["status"], card["exit_code"], card["last"]["epoch"]) == ("pruned", 0, 1)
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    assert len(rows(tmp_path / "run/metrics.csv")) == 2
    told = open_study(tmp_path).trials[2].intermediate_values
    assert list(told) == [1, 2] and told[2] == pytest.approx(card["last"]["val/top1"])
    # The same trial once more, and a trial that has ended: the one is ended again, the other is left alone.
    with pytest.raises(PrunedError):
        train(*words, run_dir=tmp_path / "again", isolated=True)
    study.tell(2, state=optuna.trial.TrialState.PRUNED)
    assert train(*words, run_dir=tmp_path / "alone", isolated=True) is not None


class FakeHydra:
    """Hydra's global config of job `number` of a sweep."""

    def __init__(self, sweep_dir: Path, number: int) -> None:
        self.config = OmegaConf.create({"sweep": {"dir": str(sweep_dir)}, "job": {"num": number}})
        self.config.mode = RunMode.MULTIRUN

    def initialized(self) -> bool:
        return True

    def get(self) -> object:
        return self.config


def test_words_of_pruning() -> None:
    with pytest.raises(ValueError, match="min_epochs must be at least 1; got 0"):
        Pruning(min_epochs=0)


def test_a_search_on_submitit_goes_on(images: Path, tmp_path: Path) -> None:
    """The whole way: jobs of submitit's local executor, two at once; then more trials in the same folder."""
    script = [sys.executable, str(ROOT / "src/train.py"), "-m"]
    tiny = [*(word for word in TINY if "max_epochs" not in word), f"data.root={images}", "trainer.max_epochs=1"]
    first = subprocess.run(
        [
            *script,
            *tiny,
            "sweep=optuna",
            "launcher=submitit",
            "launcher.cluster=local",
            "launcher.jobs=2",
            "optimizer.lr=tag(log,interval(1e-4,1e-2))",
            "hydra.sweeper.num_trials=2",
            "hydra.sweep.dir=search",
        ],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert "best val/top1" in first.stdout and "job 1: finished" in first.stdout
    cards = {path: path.stat().st_mtime_ns for path in (tmp_path / "search").glob("*/run.json")}
    assert len(cards) == 2
    again = subprocess.run(
        [*script, "resume=search", "hydra.sweeper.num_trials=3", "launcher=sequential"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "3 jobs" in again.stdout and "job 2:" in again.stdout and "job 1:" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in cards} == cards
    assert [trial.state.name for trial in open_study(tmp_path / "search").trials] == ["COMPLETE"] * 3


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"cluster": "lsf"}, "launcher.cluster must be slurm, local or null; got lsf"),
        ({"cluster": "local", "jobs": 0}, "launcher.jobs must be null or at least 1; got 0"),
        ({"cluster": "slurm"}, "launcher.cluster=slurm needs SLURM's sbatch"),
        ({"cluster": "local", "color": 1}, "launcher: Parameter 'color'"),
        (
            {"cluster": "local", "signal_delay_s": 0},
            "launcher.signal_delay_s must be at least 1 and less than .* 14400 s; got 0",
        ),
        (
            {"cluster": "local", "timeout_min": 2, "signal_delay_s": 120},
            "launcher.signal_delay_s must be .* less than launcher.timeout_min, 120 s; got 120",
        ),
    ],
)
def test_words_of_submitit(
    keywords: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match=words):
        Submitit(**keywords).prepare(tmp_path)
