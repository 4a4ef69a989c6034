"""Entry point of every command: command line, run folder, error messages and exit code.

Does not import torch, so that `--help`, `--cfg job` and invalid arguments are answered at once.
"""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.errors import HydraException, OverrideParseException

from alexlab.cli.env_file import load_env_file
from alexlab.cli.exits import exit_on_error
from alexlab.cli.hydra_state import register
from alexlab.cli.invocation import parse_invocation
from alexlab.cli.run_dirs import created_folders, remove_unused
from alexlab.cli.streams import check_output, open_streams, restart_in_utf8
from alexlab.cli.task import CommandTask
from alexlab.config import CONFIG_DIR
from alexlab.distributed import ranks
from alexlab.distributed.failures import translate_errors
from alexlab.distributed.signals import INTERRUPTED, Interrupted, signals
from alexlab.distributed.socket_paths import ensure_short_socket_paths
from alexlab.errors import ConfigError
from alexlab.output.command_line import command_line, short_path
from alexlab.output.escape import print_line
from alexlab.records import layout
from alexlab.sweeps.table import JobTable


def run_command(name: str, on_end: Callable[[Path], object] = lambda folder: None) -> None:
    """Compose `conf/<name>.yaml` with the command line, run `alexlab.tasks.<name>.main` and exit with its exit code.

    Args:
        name: name of the command.
        on_end: called with the folder of the run or sweep, if one was started.
    """
    restart_in_utf8()
    open_streams()
    with exit_on_error():
        load_env_file()
        ensure_short_socket_paths()
        invocation = parse_invocation(name, sys.argv[1:])
    sys.argv[1:] = invocation.arguments
    register()
    task = CommandTask(invocation)
    codes = task.exit_codes
    with created_folders() as created:
        try:
            with signals.install() if name == "train" else nullcontext():
                os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
                with exit_on_error():  # of a launcher
                    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(task)()
                if task.table.sweep_dir is not None:
                    with exit_on_error(), translate_errors(task.table.sweep_dir):
                        task.table.print_results()
        except HydraException as error:
            print_hydra_error(error)
            codes.append(ConfigError.exit_code)
        except SystemExit as error:
            if error.code:
                remove_unused(created)
            raise
        except (KeyboardInterrupt, Interrupted) as error:
            codes.append(error.exit_code if isinstance(error, Interrupted) else INTERRUPTED)
            _print_how_to_resume(name, task.table)
        folder = task.table.sweep_dir or task.run_dir
        if folder is not None:
            on_end(folder)
        if task.table.any_failed():
            codes.append(1)
        if any(codes):
            remove_unused(created)
        if folder is not None and ranks.rank() == 0:
            from alexlab.records.index import refresh_index  # needs a quarter of a second

            refresh_index(folder)
    with exit_on_error():
        check_output()
    sys.exit(max(codes, default=0))


def print_hydra_error(error: HydraException) -> None:
    """Print an error of Hydra without its traceback."""
    if isinstance(error, OverrideParseException):
        print_line(
            f"{error.override} must be KEY=VALUE in Hydra's grammar; a value with spaces, brackets or other special "
            "characters needs quotes inside the shell's, such as 'KEY=\"VALUE\"'",
            file=sys.stderr,
        )
        return
    if "does not support sweep type : INTERVAL" in str(error):
        given = next((argument for argument in sys.argv[1:] if "interval(" in argument), "interval(...)")
        print_line(f"{given} needs a search, since a grid takes lists of values: add sweep=optuna", file=sys.stderr)
        return
    for line in str(error).splitlines():
        print_line(line, file=sys.stderr)


def _print_how_to_resume(name: str, table: JobTable) -> None:
    first = next(iter(table.jobs), None)
    if first is None or name != "train":
        return
    if first.standalone and first.place.startswith("slurm"):
        print_line(f"the job keeps running as {first.place}; its output goes to {first.folder / layout.OUTPUT}")
    elif first.standalone:
        print_line(f"to resume: {command_line(name, f'resume={short_path(first.folder)}')}")
    else:
        print_line("to resume this sweep:")
        print_line(command_line(name, "-m", f"resume={short_path(first.folder.parent)}"))
