"""Errors of a command as messages, log entries and exit codes."""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf.errors import InterpolationResolutionError, UnsupportedInterpolationType

from alexlab.distributed.failures import translate_errors
from alexlab.errors import AlexlabError, ConfigError, PrunedError, exit_code_of
from alexlab.output.escape import print_line
from alexlab.records.layout import RUN_JSON

UNRESOLVED = (InterpolationResolutionError, UnsupportedInterpolationType)

BUG = "This is a bug in alexlab. Please report it with the traceback above"

log = logging.getLogger(__name__)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print a user error or an unresolvable interpolation and exit with its code."""
    try:
        yield
    except (AlexlabError, *UNRESOLVED) as error:
        user_error = error if isinstance(error, AlexlabError) else unresolved(error)
        for line in user_error.args:
            print_line(line, file=sys.stderr)
        raise SystemExit(user_error.exit_code) from error


@contextmanager
def exit_on_any_error() -> Iterator[None]:
    """Exit on an unexpected error too, after printing its traceback."""
    try:
        with exit_on_error():
            yield
    except Exception as error:
        traceback.print_exc()
        print_line(f"{BUG}.", file=sys.stderr)
        raise SystemExit(exit_code_of(error)) from error


def unresolved(error: Exception) -> ConfigError:
    """Return the user error for an interpolation that OmegaConf cannot resolve."""
    key = getattr(error, "full_key", None)
    return ConfigError(f"{key}: cannot resolve the interpolation; {str(error).splitlines()[0]}")


@contextmanager
def report_errors(run_dir: Path, exit_codes: list[int]) -> Iterator[None]:
    """Report the error of a task and append its exit code. In a sweep the launcher gets the error as well.

    Args:
        run_dir: run folder, for messages about a full disk and about bugs.
        exit_codes: list that the exit code is appended to.
    """
    try:
        with translate_errors(run_dir):
            yield
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun prints it when it exits
            from alexlab.distributed.error_files import write_error_file

            write_error_file(error)
        if isinstance(error, AlexlabError) and error.refused:
            print_line(error, file=sys.stderr)
        elif isinstance(error, AlexlabError):
            log.log(logging.INFO if isinstance(error, PrunedError) else logging.ERROR, "%s", error)
        else:
            report_bug(error, run_dir)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        exit_codes.append(exit_code_of(error))


def report_bug(error: Exception, run_dir: Path) -> None:
    """Log an unexpected error with its traceback and how to report it."""
    record = run_dir / RUN_JSON
    attached = f" and {record}" if record.is_file() else ""
    log.exception("%s", error, exc_info=error)
    log.error("%s%s.", BUG, attached)
