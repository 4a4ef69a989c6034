"""Commands for the user to copy."""

import os
import re
import shlex
import sys
from contextvars import ContextVar
from pathlib import Path

_repeated: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("repeated", default=())  # options and their values


def short_path(path: str | os.PathLike[str]) -> str:
    """Return a path relative to the working directory, or the absolute path if it is outside."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith("..") else relative


def repeat_option(option: str, value: str) -> None:
    """Add an option without which later commands refuse the run, such as --config-dir, to every command line.

    Args:
        option: the option.
        value: its value; a folder is shortened, see `short_path`.
    """
    _repeated.set((*_repeated.get(), (option, value)))


def repeated_options() -> list[str]:
    """Return the options of `repeat_option`, for a command that this process starts."""
    return [f"{option}={value}" for option, value in _repeated.get()]


def command_line(command: str, *arguments: object) -> str:
    """Return a command to paste into a shell, started as this process was: `python src/NAME.py ...` or `alexlab NAME ...`.

    >>> command_line("train", "resume=my run")
    "alexlab train 'resume=my run'"
    """
    script = Path(sys.argv[0]).with_name(f"{command}.py")
    is_script = script.resolve() == Path(__file__).resolve().parents[2] / script.name and script.is_file()
    program = f"python {shlex.quote(str(script))}" if is_script else f"alexlab {command}"
    options = (f"{option}={short_path(value) if os.path.isdir(value) else value}" for option, value in _repeated.get())
    arguments = (*options, *arguments)
    return " ".join([program, *(shlex.quote(str(argument)) for argument in arguments)])


def own_commands(text: str) -> str:
    """Write every `python src/NAME.py` in a text as `command_line` does."""
    return re.sub(r"python src/(\w+)\.py", lambda match: command_line(match[1]), text)
