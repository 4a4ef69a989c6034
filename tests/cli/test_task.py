"""The task of a command, called as Hydra calls it."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from alexlab.cli.command import print_hydra_error
from alexlab.cli.invocation import Invocation
from alexlab.cli.task import CommandTask, selected_ablations
from alexlab.config import preflight
from support.runs import TINY, composed

pytestmark = pytest.mark.slow


def test_ablations_are_recorded_as_a_choice() -> None:
    assert selected_ablations(["seed=1", "ablation=[tanh,no_lrn]"]) == "tanh,no_lrn"
    assert selected_ablations(["ablation=tanh"]) == "tanh"
    assert {selected_ablations(given) for given in ([], ["ablation=[]"], ["ablation=null"], ["ablation=none"])} == {
        "none"
    }


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["seed=2", "launcher=parallel"], "launcher=parallel is for sweeps: add -m"),
        (["launcher.retry_failed=true"], "launcher.retry_failed=true is for sweeps: add -m"),
        (["sweep=optuna"], "sweep=optuna is for sweeps: add -m"),
        (["launcher=submitit", "hydra.sweeper.x=2"], "hydra.sweeper.x=2 is for sweeps: add -m"),
        (["launcher=sequential", "seed=2"], None),
        (["launcher=submitit", "launcher.jobs=2"], None),
    ],
)
def test_settings_of_sweeps_need_a_sweep(
    overrides: list[str],
    refused: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = composed("seed=1")
    OmegaConf.set_readonly(config.hydra, False)
    with open_dict(config):
        config.hydra.mode = RunMode.RUN
        config.hydra.overrides.task = overrides
        launcher = "submitit" if "launcher=submitit" in overrides else "parallel"
        config.hydra.runtime.update(cwd=str(tmp_path), output_dir=str(tmp_path), choices={"hydra/launcher": launcher})
    HydraConfig.instance().set_config(config)
    started = []
    monkeypatch.setattr(CommandTask, "_submit", lambda self, config: started.append(1))
    monkeypatch.setattr(CommandTask, "_prepare", lambda self, config: started.append(1))
    monkeypatch.setattr(CommandTask, "_main", lambda self, run: 0.0)
    monkeypatch.setattr(CommandTask, "_compare", lambda self, run: None)
    task = CommandTask(Invocation("train", (), ()))
    task(config)
    assert (task.exit_codes, capsys.readouterr().err.strip()) == ([1] if refused else [], refused or "")
    assert bool(started) is not bool(refused)


def test_a_job_that_was_checked_with_its_sweep_is_not_rehearsed_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed = []
    monkeypatch.setattr(preflight, "rehearse", lambda config, splits, *, num_ranks: rehearsed.append(config["seed"]))
    task = CommandTask(Invocation("train", (), ()))

    def job(seed: int) -> Any:
        config = composed(*TINY, f"data.root={images}", f"data.cache_dir={tmp_path}/cache", f"seed={seed}")
        run_dir = tmp_path / str(seed)
        run_dir.mkdir()
        OmegaConf.set_readonly(config.hydra, False)
        with open_dict(config):
            config.hydra.mode = RunMode.MULTIRUN
            config.hydra.runtime.update(cwd=str(tmp_path), output_dir=str(run_dir), choices={})
        HydraConfig.instance().set_config(config)
        own = config.copy()
        with open_dict(own):
            del own.hydra
        return own

    checked = job(1)
    task.check(checked, remote=False)
    assert rehearsed == [1]
    assert task(checked) is not None
    assert rehearsed == [1]
    assert task(job(2)) is not None
    assert rehearsed == [1, 2]


def test_an_interval_without_a_search_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "optimizer.lr=interval(1e-4,1e-2)"
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", typed])
    with pytest.raises(HydraException) as caught:
        BasicSweeper.split_arguments([OverridesParser.create().parse_override(typed)], None)
    print_hydra_error(caught.value)
    expected = f"{typed} needs a search, since a grid takes lists of values: add sweep=optuna\n"
    assert capsys.readouterr().err == expected
