"""Whole commands as candidates."""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from alexlab.benchmark.interleave import Figures
from alexlab.errors import AlexlabError, ConfigError


def script_command(script: str, overrides: Sequence[str]) -> list[str]:
    """Return the command line of one of our scripts in this Python."""
    return [sys.executable, str(Path(__file__).parents[2] / script), *overrides]


def peer_command(line: str, **values: object) -> list[str]:
    """Return the arguments of a command line, with its {fields} filled in.

    Raises:
        ConfigError: if a field is unknown, a quote is not closed or the program does not exist.
    """
    try:
        command = shlex.split(line.format(**values))
    except (KeyError, IndexError, ValueError) as error:
        fields = ", ".join(f"{{{name}}}" for name in values)
        raise ConfigError(f"peer must have closed quotes and no fields other than {fields}; got {line!r}") from error
    if not command or shutil.which(command[0]) is None:
        raise ConfigError(f"peer must begin with a program that can be run; got {line!r}")
    return command


def timed(work: Callable[[], object]) -> Figures:
    """Return the seconds that a call takes, as `s`."""
    start_s = time.perf_counter()
    work()
    return {"s": time.perf_counter() - start_s}


def run_command(command: Sequence[str]) -> None:
    """Run a command to its end; its output goes where that of this process goes.

    Raises:
        AlexlabError: if it fails.
    """
    code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    if code:
        raise AlexlabError(f"`{shlex.join(command)}` exited with code {code}")


def command_timer(command: Sequence[str]) -> Callable[[], Figures]:
    """Return the work of a candidate that runs a command in each turn; for `interleave.loop`."""
    return lambda: timed(lambda: run_command(command))
