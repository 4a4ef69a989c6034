"""Records of sweeps with a launcher of the user, and errors while a record is written."""

import contextvars
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from alexlab.cli import run_dirs
from alexlab.config import own_code
from alexlab.errors import ConfigError
from alexlab.sweeps.record import check_sweep_record, make_record, read_record
from support.runs import composed


def config(*overrides: str, launcher: str, **settings: Any) -> dict[str, Any]:
    """Return the part of a sweep's config that its record is made of."""
    return {
        "hydra": {
            "sweeper": {"params": None},
            "overrides": {"task": [*overrides], "hydra": []},
            "runtime": {"choices": {"launcher": launcher, "hydra/sweeper": "basic"}},
        },
        "launcher": {"jobs": 2, "retry_failed": False, **settings},
    }


def test_a_launcher_of_the_user_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "my/conf/launcher").mkdir(parents=True)
    (tmp_path / "my/conf/launcher/mine.yaml").write_text("# @package _global_\ndefaults: [parallel]\n")
    record = make_record(config("seed=1,2", "launcher=mine", "launcher.jobs=3", launcher="mine", jobs=3))
    record.write(tmp_path)
    with pytest.raises(ConfigError, match=r"launcher must be one of .*, or of the folder of --config-dir; got 'mine'"):
        read_record(tmp_path)

    def read_with_config_dir() -> list[str]:
        own_code.add_folder(str(tmp_path / "my"))
        return read_record(tmp_path).launcher_overrides()

    assert contextvars.copy_context().run(read_with_config_dir) == ["launcher=mine", "launcher.jobs=3"]


def test_failed_jobs_are_retried_by_one_command_only() -> None:
    typed = ("seed=1,2", "launcher=parallel", "launcher.jobs=3", "launcher.retry_failed=true")
    record = make_record(config(*typed, launcher="parallel", jobs=3, retry_failed=True))
    check_sweep_record(record)
    assert record.settings == {"jobs": 3}


@pytest.mark.parametrize("event", ["on_run_start", "on_multirun_start"])
def test_an_unexpected_error_of_the_callback_ends_the_command(
    event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra would turn it into a warning and run the jobs without a record and a lock."""

    def fail(*args: Any, **options: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_dirs, "_create", fail)
    found = composed()
    OmegaConf.set_readonly(found.hydra, False)
    with pytest.raises(SystemExit) as exit_:
        getattr(run_dirs.RunDirs(), event)(found)
    assert exit_.value.code == 70
    errors = capsys.readouterr().err
    assert (
        "KeyError: 'a bug'" in errors
        and "This is a bug in alexlab. Please report it with the traceback above." in errors
    )
