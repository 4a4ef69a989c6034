import importlib.util
import os
import re
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
from alexlab.records.record import RunRecord
from alexlab.sweeps.jobs import FAILED, FINISHED, STORAGE, Job
from alexlab.sweeps.pruning import Pruning, open_study
from alexlab.sweeps.slurm import Submitit
from hydra_plugins.alexlab_optuna import OptunaSweeper, _checked_study, distribution, tell
from support.commands import run
from support.runs import TINY, rows, write_record

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("x=a,b", CategoricalDistribution(["a", "b"])),
        ("x=interval(0.5,2)", FloatDistribution(0.5, 2.0)),
        ("x=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("x=range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("x=range(0,3)", IntDistribution(0, 2)),
        ("x=shuffle(range(0,3))", CategoricalDistribution(["0", "1", "2"])),
    ],
)
def test_search_spaces(override: str, expected: object) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    found = distribution(parsed)
    if isinstance(found, CategoricalDistribution):
        found = CategoricalDistribution(sorted(map(str, found.choices)))
    assert found == expected


@pytest.mark.parametrize(
    "override",
    [
        "x=interval(2,1)",
        "x=tag(log,interval(0,1))",
        "x=range(3,1)",
        "x=tag(log,range(16,257))",
        "x=int(interval(1,128))",
        "x=tag(log,int(interval(1,128)))",
    ],
)
def test_invalid_search_spaces_are_refused(override: str) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    with pytest.raises(ConfigCompositionException, match=re.escape(f"{override} must be a search space: ")):
        distribution(parsed)


def test_a_missing_optuna_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigCompositionException,
        match=re.escape("sweep=optuna needs the package optuna: run pip install -e '.[optuna]' in the repository"),
    ):
        OptunaSweeper(num_trials=1, seed=1).sweep(["x=a,b"])


def proposals(study: optuna.Study, num_trials: int) -> Iterator[tuple[int, dict[str, float]]]:
    spaces = {"x": FloatDistribution(0.0, 1.0), "y": CategoricalDistribution(["a", "b"])}
    return OptunaSweeper(num_trials=num_trials, seed=3).propose(study, spaces)


def score(values: dict[str, float]) -> float:
    return float(values["x"]) + (values["y"] == "b")


def test_a_resumed_search_proposes_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """More trials than Optuna's ten random ones, so that the estimator proposes some."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = open_study(tmp_path / "whole")
    uninterrupted = []
    for number, values in proposals(whole, 14):
        uninterrupted.append((number, values))
        whole.tell(number, score(values))
    first = open_study(tmp_path / "parts")
    found = []
    for number, values in proposals(first, 14):
        found.append((number, values))
        if number == 6:
            break  # killed while trial 6 runs
        first.tell(number, score(values))
    again = open_study(tmp_path / "parts")
    for number, values in proposals(again, 14):
        if number == 6:
            assert (number, values) == found.pop()
        found.append((number, values))
        again.tell(number, score(values))
    assert found == uninterrupted
    assert [trial.number for trial in again.trials] == list(range(14))


def test_a_trial_below_the_median_is_pruned(
    train: Callable[..., float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials with perfect scores, then one at chance, on two ranks: it is pruned after the second epoch."""
    study = open_study(tmp_path)
    for _ in range(2):
        trial = study.ask()
        for epoch in range(1, 5):
            trial.report(1.1, step=epoch)
        study.tell(trial, 1.1)
    study.ask()
    monkeypatch.setattr("alexlab.sweeps.pruning.HydraConfig", FakeHydra(tmp_path, 2))
    overrides = (
        "sweep=optuna",
        "callbacks.pruning.min_trials=2",
        "callbacks.pruning.min_epochs=2",
        "trainer.max_epochs=4",
        "trainer.devices=2",
        "optimizer.lr=1e-6",
    )
    with pytest.raises(PrunedError, match="after epoch 2 its best val/top1 was worse than the median"):
        train(*overrides, isolated=True)
    record = RunRecord(tmp_path / "run").read()
    assert (record["status"], record["exit_code"], record["last"]["epoch"]) == ("pruned", 0, 2)
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    assert len(rows(tmp_path / "run/metrics.csv")) == 2
    reported = open_study(tmp_path).trials[2].intermediate_values
    assert list(reported) == [1, 2] and reported[2] == pytest.approx(record["last"]["val/top1"])
    # The same trial again is pruned again; a trial that has ended is not.
    with pytest.raises(PrunedError):
        train(*overrides, run_dir=tmp_path / "again", isolated=True)
    study.tell(2, state=optuna.trial.TrialState.PRUNED)
    train(*overrides, run_dir=tmp_path / "alone", isolated=True)
    assert RunRecord(tmp_path / "alone").read()["status"] == "finished"


class FakeHydra:
    """Hydra's global config of job `number` of a sweep."""

    def __init__(self, sweep_dir: Path, number: int) -> None:
        self.config = OmegaConf.create({"sweep": {"dir": str(sweep_dir)}, "job": {"num": number}})
        self.config.mode = RunMode.MULTIRUN

    def initialized(self) -> bool:
        return True

    def get(self) -> object:
        return self.config


def test_pruning_settings_must_be_positive() -> None:
    with pytest.raises(ValueError, match="min_epochs must be at least 1; got 0"):
        Pruning(min_epochs=0)


def test_a_search_on_submitit_is_resumed(images: Path, tmp_path: Path) -> None:
    """End to end: two parallel jobs of submitit's local executor, then more trials in the same folder."""
    tiny = [
        *(override for override in TINY if "max_epochs" not in override),
        f"data.root={images}",
        "trainer.max_epochs=1",
    ]
    search = [
        "sweep=optuna",
        "launcher=submitit",
        "launcher.cluster=local",
        "launcher.jobs=2",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        "hydra.sweeper.num_trials=2",
        "hydra.sweep.dir=search",
    ]
    first = run("train", "-m", *tiny, *search, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "best val/top1" in first.stdout and "job 1: finished" in first.stdout
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "search").glob("*/run.json")}
    assert len(records) == 2
    more = ["resume=search", "hydra.sweeper.num_trials=3", "launcher=sequential"]
    again = run("train", "-m", *more, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "3 jobs" in again.stdout and "job 2:" in again.stdout and "job 1:" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in records} == records
    assert [trial.state.name for trial in open_study(tmp_path / "search").trials] == ["COMPLETE"] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
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
def test_settings_of_submitit(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        Submitit(**settings).prepare(tmp_path)


def test_a_journal_that_was_cut_off_is_continued(tmp_path: Path) -> None:
    """A full disk or a power failure may leave the beginning of a line, to which Optuna would append."""
    spaces = {"x": FloatDistribution(0.0, 1.0)}
    study = _checked_study(tmp_path, spaces, "max")
    study.tell(study.ask(spaces), 0.5)
    with (tmp_path / STORAGE).open("a") as file:
        file.write('{"op_code": 4, "worker')
    for number in range(2):
        study = _checked_study(tmp_path, spaces, "max")
        study.tell(study.ask(spaces), 0.5)
        assert [trial.value for trial in study.get_trials()] == [0.5] * (number + 2)


def test_an_abandoned_lock_is_found_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna's lock is a link to the journal; one to a relative path is broken and would never expire."""
    monkeypatch.chdir(tmp_path)
    Path("sweep").mkdir()
    links = []
    monkeypatch.setattr(
        os, "symlink", lambda source, target, link=os.symlink: (links.append(source), link(source, target))
    )
    open_study(Path("sweep"))
    assert links and all(os.path.isabs(source) for source in links)


def test_an_interrupted_trial_is_continued_by_a_resumed_search(tmp_path: Path) -> None:
    spaces = {"x": FloatDistribution(0.0, 1.0)}
    study = _checked_study(tmp_path, spaces, "max")
    for status in ("finished", "failed", "interrupted"):
        number = study.ask(spaces).number
        folder = write_record(
            tmp_path / str(number), status=status, reason="", optimized={"name": "val/top1", "mode": "max"}
        )
        job = Job(number, [], folder, {}, state=FINISHED if status == "finished" else FAILED)
        job.score = 0.5 if status == "finished" else None
        tell(study, job)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "FAIL", "RUNNING"]
    sweeper = OptunaSweeper(num_trials=3, seed=1)
    assert [number for number, _ in sweeper.propose(study, spaces)] == [2]
