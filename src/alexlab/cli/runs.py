"""`alexlab runs`: the list of all runs. It composes no config, writes nothing and imports no torch."""

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alexlab.cli.arguments import join_arguments, pop_outputs
from alexlab.cli.env_file import load_env_file
from alexlab.cli.exits import exit_on_error
from alexlab.cli.run_table import print_runs
from alexlab.cli.streams import check_output, open_streams, restart_in_utf8
from alexlab.config.grammar import expand_home
from alexlab.errors import ConfigError
from alexlab.output.command_line import command_line
from alexlab.output.csv_files import csv_bytes
from alexlab.output.escape import print_line, shown
from alexlab.output.terminal import Terminal
from alexlab.records.layout import outputs_dir
from alexlab.records.listing import STATUSES, UNREADABLE, group_sweeps, list_runs
from alexlab.records.results import RunResult
from alexlab.records.settings import result_rows

HELP = """usage: {program} [FOLDER ...] [KEY=VALUE ...]

Lists the runs below folders, by default outputs, newest first, the runs of a sweep together.

  status=failed,running   only runs with one of these: {statuses}
  tags=baseline,paper     only runs that have all of these tags
  limit=100               number of runs in the table; all: every run
  format=csv              table, csv or json; csv and json have every run, the keys that differ and all scores

Examples:

  {program}
  {program} outputs/sweeps status=failed
  {program} 'outputs/train/2026-11-*' format=csv > runs.csv"""
FORMATS = ("table", "csv", "json")
KEYS = ("status", "tags", "limit", "format")
LIMIT = 30


@dataclass(frozen=True)
class Options:
    """Arguments of the command."""

    folders: Sequence[str]
    statuses: Sequence[str]
    tags: Sequence[str]
    limit: int | None
    format: str


def main(arguments: Sequence[str]) -> None:
    """List the runs and exit."""
    restart_in_utf8()
    open_streams()
    with exit_on_error():
        load_env_file()
        if {"-h", "--help"} & {*arguments}:
            text = HELP.format(program=command_line("runs"), statuses=", ".join(STATUSES))
            for line in text.split("\n"):
                print_line(line)
        else:
            options = parse_options(arguments)
            runs = list_runs(options.folders, statuses=options.statuses, tags=options.tags)
            if options.format == "table":
                print_runs(Terminal(), runs, limit=options.limit, command=_all_runs(options))
            else:
                _print_rows(runs, options.format)
        check_output()
    sys.exit(0)


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the options.

    Raises:
        ConfigError: for an unknown key or value.
    """
    values: dict[str, str] = {}
    folders = []
    for argument in pop_outputs(join_arguments(arguments)):
        key, equals, value = argument.partition("=")
        if not equals or Path(argument).exists():
            folders.append(expand_home(argument))
        elif key in KEYS:
            values[key] = value
        else:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(KEYS)}"
            raise ConfigError(f"alexlab runs has no key {key}; {hint}")
    statuses, tags = (
        [word.strip() for word in values.get(key, "").strip("[]").split(",") if word.strip()]
        for key in ("status", "tags")
    )
    for status in statuses:
        if status not in STATUSES:
            raise ConfigError(f"status must be one of {', '.join(STATUSES)}; got {status}")
    limit, file_format = values.get("limit", str(LIMIT)), values.get("format", FORMATS[0])
    if limit not in ("all", "null") and not (limit.isdecimal() and int(limit)):
        raise ConfigError(f"limit must be a positive integer or all; got {limit}")
    if file_format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}; got {file_format}")
    return Options(
        folders or [str(outputs_dir())], statuses, tags, int(limit) if limit.isdecimal() else None, file_format
    )


def _all_runs(options: Options) -> str:
    """Return the command that lists the same runs without a limit."""
    folders = [] if options.folders == [str(outputs_dir())] else options.folders
    filters = {"status": options.statuses, "tags": options.tags}
    typed = [f"{key}={','.join(words)}" for key, words in filters.items() if words]
    return command_line("runs", *folders, *typed, "limit=all")


def _print_rows(runs: Sequence[RunResult], file_format: str) -> None:
    """Print a row per readable run as CSV or JSON, without control characters."""
    for run in runs:
        if run.status == UNREADABLE:
            print_line(f"left out: {run.record['reason']}", file=sys.stderr)
    rows = [run for entry in group_sweeps(runs) for run in entry.runs if run.status != UNREADABLE]
    if not rows:
        raise ConfigError("at least one run must be readable; the lines above give the reasons")
    results = [{shown(key): value for key, value in row.items()} for row in result_rows(rows)]
    if file_format == "json":
        sys.stdout.write(json.dumps(results, indent=1) + "\n")  # escapes everything but ASCII
        return
    columns = list(dict.fromkeys(key for row in results for key in row))
    cells = [[_csv_cell(row.get(column)) for column in columns] for row in results]
    sys.stdout.write(csv_bytes([columns, *cells]).decode())


def _csv_cell(value: object) -> object:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return value if value is None or isinstance(value, int | float) else shown(value)
