"""Code of the user in the folder of `--config-dir`, and what a stranger's config may do with it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alexlab.cli.hydra_state import ProcessState
from alexlab.cli.invocation import parse_invocation
from alexlab.config import allowlist, own_code
from alexlab.config.instantiate import locate
from alexlab.config.own_code import add_folder, pop_config_dir
from alexlab.errors import ConfigError
from alexlab.output import command_line

CALLBACKS = """
import os
from os import system
from lightning.pytorch.callbacks import Callback

class Mine(Callback):
    pass

def made() -> Callback:
    return Mine()

def anything(command):
    raise SystemExit(command)
"""


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    before, trusted = set(sys.modules), allowlist._trusted.set(())
    folders, repeated = own_code._folders.set(()), command_line._repeated.set(())
    yield
    command_line._repeated.reset(repeated)
    allowlist._trusted.reset(trusted)
    own_code._folders.reset(folders)
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module and a package."""
    folder = tmp_path / "my"
    (folder / "conf").mkdir(parents=True)
    (folder / "own_callbacks.py").write_text(CALLBACKS)
    (folder / "own_package").mkdir()
    (folder / "own_package" / "__init__.py").write_text(CALLBACKS)
    return folder


@pytest.mark.parametrize("flags", [["--config-dir", "my"], ["--config-dir=my"], ["-cd", "my"]])
def test_the_folder_is_found_however_it_is_given(
    flags: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    arguments = parse_invocation("train", ["seed=1", *flags, "experiment=x"]).arguments
    assert list(arguments) == ["seed=1", "experiment=x", f"--config-dir={folder / 'conf'}"]
    assert locate("own_callbacks.Mine", "callbacks.mine").__name__ == "Mine"
    assert locate("own_package.made", "callbacks.mine")().__class__.__name__ == "Mine"


def test_commands_to_copy_name_the_folder_and_the_trusted_packages(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    parse_invocation("train", ["--config-dir", str(folder), "trusted_targets=[a,b]"])
    assert command_line.command_line("train", "resume=x").endswith("'trusted_targets=[a,b]' --config-dir=my resume=x")


def test_an_option_with_the_name_of_a_built_in_one_is_refused(folder: Path) -> None:
    (folder / "conf/experiment").mkdir()
    (folder / "conf/experiment/mine.yaml").touch()
    add_folder(str(folder))
    (folder / "conf/experiment/cats_and_dogs.yaml").touch()
    with pytest.raises(
        ConfigError, match=r"cats_and_dogs.yaml has the name of an option of alexlab, which would be read"
    ):
        add_folder(str(folder))


def test_a_folder_without_conf_holds_the_yaml_files_itself(folder: Path) -> None:
    (folder / "conf").rmdir()
    assert add_folder(str(folder)) == folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config-dir", "nope"], "nope is not a folder. alexlab new DIR writes such a folder"),
        (["--config-dir"], "nothing is not a folder"),
        (["--config-dir=a", "--config-dir=b"], "--config-dir must be given once; got a and b"),
    ],
)
def test_a_wrong_folder_is_one_sentence(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pop_config_dir(flags)


@pytest.mark.parametrize(
    "target",
    [
        "own_package.system",
        "own_package.os.system",
        "own_callbacks.anything",
        "own_package.anything",
        "own_package.Path",
    ],
)
def test_a_config_may_name_only_parts_of_the_folder(target: str, folder: Path) -> None:
    add_folder(str(folder))
    with pytest.raises(ConfigError, match=r"callbacks\.mine\._target_ must "):
        locate(target, "callbacks.mine")


def test_without_the_folder_its_classes_are_refused_with_the_flag_to_add(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"add --config-dir=DIR, the folder that contains own_callbacks\.py"
    ) as caught:
        locate("own_callbacks.Mine", "callbacks.mine")
    assert "own_callbacks" not in sys.modules
    assert "\n" not in str(caught.value)


def test_a_file_named_like_another_module_is_refused(folder: Path) -> None:
    (folder / "platform").mkdir()
    (folder / "platform" / "x.py").touch()
    add_folder(str(folder))
    assert set(allowlist.trusted()) == {"own_callbacks", "own_package"}
    own_code._folders.set(())
    (folder / "subprocess.py").write_text(CALLBACKS)
    with pytest.raises(ConfigError, match=r"subprocess\.py has the name of another module, .* rename it"):
        add_folder(str(folder))
    assert "subprocess" not in allowlist.trusted()


def test_the_processes_of_a_cluster_import_from_the_folder(folder: Path) -> None:
    add_folder(str(folder))
    state = ProcessState.capture()
    assert state.folders == (str(folder),)
    sys.path.remove(str(folder))
    own_code._folders.set(())
    allowlist._trusted.set(())
    add_folder(*state.folders)
    assert locate("own_callbacks.Mine", "callbacks.mine").__name__ == "Mine"
