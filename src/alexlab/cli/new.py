"""`alexlab new DIR`: a folder for the user's own parts, with an example that trains at once."""

import shutil
from pathlib import Path

from alexlab.errors import ConfigError
from alexlab.output.command_line import command_line
from alexlab.output.escape import print_line

STARTER = Path(__file__).parent / "starter"


def write_folder(arguments: list[str]) -> None:
    """Write the example net, dataset and configs to a new folder, and print the command that trains them.

    Raises:
        ConfigError: if no folder is named, or it exists and is not empty.
    """
    if {"-h", "--help"} & {*arguments}:
        print_line("usage: alexlab new DIR    writes a folder for your own nets, datasets and experiments")
        return
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ConfigError(f"alexlab new takes one folder: alexlab new DIR; got {' '.join(arguments) or 'none'}")
    folder = Path(arguments[0]).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"alexlab new needs a new or empty folder; {folder} is {'not empty' if folder.is_dir() else 'a file'}"
        )
    try:
        shutil.copytree(STARTER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from error
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print_line(str(path))
    print_line(f"train it: {command_line('train', '--config-dir', folder, 'experiment=example')}")
