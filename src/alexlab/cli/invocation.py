"""Command line of a command, rewritten before Hydra starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alexlab.cli.arguments import (
    TAKES_RUNS,
    check_arguments,
    collect_runs,
    expand_run_dirs,
    join_arguments,
    name_last_run,
    order_arguments,
    pop_outputs,
    quote_paths,
)
from alexlab.cli.data_option import select_data
from alexlab.config import CONFIG_DIR
from alexlab.config.allowlist import pop_trusted_targets
from alexlab.config.own_code import pop_config_dir
from alexlab.errors import ConfigError

if TYPE_CHECKING:
    from alexlab.cli.rerun import Rerun
    from alexlab.cli.resume import Resumption
    from alexlab.cli.resume_sweep import ResumedSweep


@dataclass(frozen=True)
class Invocation:
    """One call of a command.

    Args:
        command: name of the command.
        typed: arguments as typed.
        arguments: arguments for Hydra.
        earlier: the run to resume or rerun, whose config replaces the composed one.
        sweep: the sweep to resume.
    """

    command: str
    typed: Sequence[str]
    arguments: Sequence[str]
    earlier: "Resumption | Rerun | None" = None
    sweep: "ResumedSweep | None" = None


def parse_invocation(command: str, typed: Sequence[str]) -> Invocation:
    """Return the invocation for a command line.

    Raises:
        ConfigError: if an argument is malformed, or the run or sweep that it names cannot be resumed.
    """
    joined = pop_outputs(join_arguments(typed))
    check_arguments(command, joined)
    arguments, config_dir = pop_config_dir(pop_trusted_targets(joined))
    arguments = name_last_run(expand_run_dirs(arguments))
    if command == "train" and any(argument.startswith(("resume", "rerun=")) for argument in joined):
        from alexlab.cli.rerun import find_rerun
        from alexlab.cli.resume import find_resumption
        from alexlab.cli.resume_sweep import find_resumed_sweep
        from alexlab.records.disk_errors import check_free_space

        sweep = find_resumed_sweep(arguments)
        if sweep is not None:
            return Invocation(command, typed, _for_hydra(command, sweep.arguments, config_dir), sweep=sweep)
        flag = next((argument for argument in arguments if argument.startswith("-")), None)
        if flag is not None:
            raise ConfigError(f"resume= and rerun= take the config from the run's run.json; got {flag}; leave it out")
        resumption = find_resumption(arguments)
        if resumption is not None:
            check_free_space(resumption.run_dir)  # Hydra opens its log in this folder
        earlier = resumption or find_rerun(arguments)
        if earlier is not None:
            return Invocation(command, typed, earlier.arguments(), earlier=earlier)
    return Invocation(command, typed, _for_hydra(command, arguments, config_dir))


def _for_hydra(command: str, arguments: Sequence[str], config_dir: Sequence[str]) -> list[str]:
    """Return the arguments for Hydra; `config_dir` is the flag `--config-dir=DIR`, if it was given."""
    if command in ("train", "benchmark"):
        own = [Path(flag.partition("=")[2]) for flag in config_dir]
        arguments = select_data(arguments, config_dirs=[CONFIG_DIR, *own])
    quoted = quote_paths(collect_runs(arguments) if command in TAKES_RUNS else arguments)
    return [*order_arguments(quoted), *config_dir]
