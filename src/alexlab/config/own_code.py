"""Code of the user: the Python files of the folder that `--config-dir` names.

Naming the folder on the command line trusts its code, as running it does: its modules can be imported and be a `_target_`. No
config can name such a folder, so a run folder or a checkpoint from somebody else imports nothing that the user did not add.
"""

import importlib.util
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

from alexlab.config import CONFIG_DIR, allowlist
from alexlab.errors import ConfigError
from alexlab.output.command_line import repeat_option

FLAGS = ("--config-dir", "-cd")
CONF = "conf"

_folders: ContextVar[tuple[str, ...]] = ContextVar("folders", default=())  # absolute paths


def pop_config_dir(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without `--config-dir`, and that flag for Hydra; the code of the folder becomes importable.

    Raises:
        ConfigError: if the folder does not exist.
    """
    kept: list[str] = []
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in FLAGS:
            found.append(value if equals else next(rest, ""))
        else:
            kept.append(argument)
    if not found:
        return kept, []
    if len(found) > 1:
        raise ConfigError(f"--config-dir must be given once; got {' and '.join(found)}")
    return kept, [f"--config-dir={add_folder(found[0])}"]


def add_folder(name: str) -> Path:
    """Make the Python files of a folder importable and trust them; return its folder of YAML files.

    That is `conf` inside the folder, or the folder itself if it has none.

    Raises:
        ConfigError: if the folder does not exist.
    """
    folder = Path(name).expanduser().absolute()
    if not name or not folder.is_dir():
        raise ConfigError(
            f"--config-dir must be a folder with your Python files and conf/; {name or 'nothing'} is not a folder. "
            f"alexlab new DIR writes such a folder"
        )
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that no file in it hides another module
        importlib.invalidate_caches()
    if str(folder) not in _folders.get():
        _folders.set((*_folders.get(), str(folder)))
        allowlist.trust(*_modules(folder))
        repeat_option("--config-dir", str(folder))
    conf = _conf_dir(folder)
    for path in CONFIG_DIR.glob("*/**/*.yaml"):
        own = conf / path.relative_to(CONFIG_DIR)
        if own.is_file() and not own.samefile(path):
            raise ConfigError(f"{own} has the name of an option of alexlab, which would be read instead; rename it")
    return conf


def _conf_dir(folder: Path) -> Path:
    return folder / CONF if (folder / CONF).is_dir() else folder


def has_option(group: str, option: str) -> bool:
    """Return whether a folder of the user has an option of a config group."""
    return any((_conf_dir(Path(folder)) / group / f"{option}.yaml").is_file() for folder in folders())


def folders() -> tuple[str, ...]:
    """Return the folders of the user's code."""
    return _folders.get()


def _modules(folder: Path) -> list[str]:
    """Return the names of the Python files and packages of a folder.

    Raises:
        ConfigError: if a file has the name of another module, which `import` would find instead.
    """
    found = []
    for path in sorted(folder.iterdir()):
        is_package = path.is_dir() and any(path.glob("*.py"))
        if not (path.suffix == ".py" or is_package) or not path.stem.isidentifier():
            continue
        if _is_found_in(path.stem, folder):
            found.append(path.stem)
        elif not is_package:  # a folder such as tests/ may well have the name of an installed package
            raise ConfigError(f"{path} has the name of another module, which Python would import instead: rename it")
    return found


def _is_found_in(module: str, folder: Path) -> bool:
    """Return whether `import module` reads the folder, and not a file of the same name elsewhere."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    return any(place is not None and Path(place).is_relative_to(folder) for place in places)
