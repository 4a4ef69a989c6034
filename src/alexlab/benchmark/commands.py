"""Whole commands, timed in turn. Imports no torch."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from alexlab.errors import AlexlabError, ConfigError
from alexlab.output.progress import track


def command_of(script: str, words: Sequence[str]) -> list[str]:
    """The command line of one of our scripts in this Python."""
    return [sys.executable, str(Path(__file__).parents[2] / script), *words]


def split_command(line: str, **known: object) -> list[str]:
    """A command line with its {places} filled in, as words.

    Raises:
        ConfigError: when it names a place that is not known.
    """
    try:
        return shlex.split(line.format(**known))
    except (KeyError, IndexError, ValueError) as error:
        choices = ", ".join(f"{{{name}}}" for name in known)
        raise ConfigError(f"peer may hold {choices}, and its quotes must be closed; got {line!r}") from error


def run_command(words: Sequence[str], log: Path) -> float:
    """Seconds that a command takes; what it prints is added to a log.

    Raises:
        AlexlabError: when it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        start_s = time.perf_counter()
        try:
            code = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file).returncode
        except OSError as error:
            raise ConfigError(f"cannot run {words[0]}: {error.strerror}") from error
        elapsed_s = time.perf_counter() - start_s
    if code:
        raise AlexlabError(f"{shlex.join(words)} has ended with {code}; {log} has its words")
    return elapsed_s


def in_turn(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each gives in each round, in an order that is reversed from round to round; one round before does not count."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in track(range(rounds + 1), "whole commands"):
        for name in sorted(contenders, reverse=bool(number % 2)):
            value = contenders[name]()
            if number:
                found[name].append(value)
    return found
