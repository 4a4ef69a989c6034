"""The functions by which the command line calls every task."""

import importlib
import inspect

import pytest

from alexlab.config import CONFIG_DIR
from alexlab.errors import ConfigError
from alexlab.records.run import Run
from alexlab.tasks import prepare

COMMANDS = sorted({path.stem for path in CONFIG_DIR.glob("*.yaml")} - {"command"})


def test_all_commands_are_listed() -> None:
    assert len(COMMANDS) == 12


@pytest.mark.parametrize("name", COMMANDS)
def test_a_task_takes_a_run_and_its_check_a_config(name: str) -> None:
    task = importlib.import_module(f"alexlab.tasks.{name}")
    parameters = list(inspect.signature(task.main).parameters.values())
    assert [parameter.annotation for parameter in parameters] == [Run]
    if hasattr(task, "check"):
        inspect.signature(task.check).bind({}, **({"remote": False} if name == "train" else {}))


def test_an_invalid_action_is_reported_before_a_sweep_starts() -> None:
    prepare.check({"action": None, "dataset": "cifar10"})
    with pytest.raises(ConfigError, match=r"action must be one of download, check, .*; got 'chek'"):
        prepare.check({"action": "chek", "dataset": None})
