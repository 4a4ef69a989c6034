"""Fault injection: `make chaos`, or `make chaos SCENARIOS="sigkill disk_full"` for some of the scenarios."""

import json
import logging
import platform
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from alexlab.distributed.hardware import describe_hardware
from alexlab.records.provenance import versions
from chaos import commands, files, runs, stock
from chaos.harness import Result, Workspace

SEED = 1
ROOT = Path(__file__).parents[2]
OUT = ROOT / "outputs/chaos.json"
Scenario = tuple[Callable[..., Any], int]  # the function and its number of tries
SCENARIOS: dict[str, Scenario] = {
    "sigkill": (runs.sigkill, 100),
    "resume_points": (runs.resume_points, 8),
    "sigkill_in_save": (files.sigkill_in_save, 200),
    "disk_full": (files.disk_full, 20),
    "sigterm": (runs.sigterm, 50),
    "lost_rank": (runs.lost_rank, 20),
    "restarts": (runs.restarts, 10),
    "repeat": (runs.repeat, 4),
}
# Only on request: each try starts the command twice, which takes a minute on 2 cores.
ON_REQUEST: dict[str, Scenario] = {"command": (commands.command, 10)}
# The same faults with stock Lightning.
STOCK: dict[str, Scenario] = {
    "sigkill": (stock.resume, 3),
    "sigkill_in_save": (files.stock_sigkill_in_save, 50),
    "exact_scores": (stock.uneven_shards, 16),
}
# Scenarios that the test suite covers: the fault and the expected outcome. Tests join one with @pytest.mark.scenario(name="...").
TESTS: dict[str, str] = {
    "nonfinite": "non-finite loss, gradient or weight: the run stops at that step, lists the images and saves nothing of it",
    "exact_scores": "1 to 17 images on 1, 2 and 3 ranks: the counts of one process",
    "sweep_code": "sweep folders that name a class, a resolver or a key of Hydra: refused, nothing executed",
    "sweep_config": "sweep folders with log handlers, launcher options or unknown names: refused, nothing truncated",
    "downloads": "downloads with equal names, corrupt copies, other URL schemes, failing servers: the right file or none",
    "targets": "configs and checkpoints that name a class where none belongs or a disallowed one: refused before any import",
    "quarantine": "quarantines whose list points outside the dataset: nothing moved",
    "tables": "tables whose classes or paths point outside the dataset: refused with the row, nothing written",
    "run_folders": "run folders that point elsewhere, by their config or by links: refused, nothing written outside",
    "escaping": "names with control characters and markup: shown literally or escaped, everywhere",
    "csv_formulas": "CSV cells that a spreadsheet would evaluate: neutralized, and read back unchanged",
    "socket_paths": "temporary folders with a long path: short socket paths, or an error in one sentence",
    "ignored_signals": "hang-ups and ignored signals: a preemption, or ignored",
    "special_files": "FIFOs, devices, sockets and endless files among the images: reported, nothing hangs",
    "disk_full_in_run": "full disks at the start and during a run: reported, or the run continues",
    "schedules": "resumed with a different length under each schedule: the learning rates of a run of that length",
    "loader_processes": "killed DataLoader workers: reported in one sentence",
    "corrupt_files": "corrupt records and checkpoints: reported, and resumed from an intact checkpoint",
    "foreign_checkpoints": "checkpoints of unbounded nets, with NaN or with invalid classes: refused in bounded time",
    "decompression_bombs": "files of at most 1 MB, oversized or corrupt: within 1 GB and 10 s",
}


def run_tests(names: list[str]) -> list[Result]:
    """Return the results of the scenarios that the test suite covers, run in one pytest process."""
    with tempfile.TemporaryDirectory(prefix="chaos_") as folder:
        report = Path(folder) / "tests.xml"
        marks = " or ".join(f"scenario(name='{name}')" for name in names)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", "-m", marks]
        start_s = time.monotonic()
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        seconds = time.monotonic() - start_s
        cases = list(ElementTree.parse(report).iter("testcase"))
    results = []
    for name in names:
        counted = [
            case for case in cases if case.find(f"properties/property[@name='scenario'][@value='{name}']") is not None
        ]
        passed = sum(all(case.find(tag) is None for tag in ("failure", "error", "skipped")) for case in counted)
        results.append(Result(name, TESTS[name], passed, len(counted), seconds=seconds / len(names)))
    return results


def inject(names: Iterable[str], workspace: Workspace, console: Console) -> list[Result]:
    """Return the results of the scenarios that are measured here, printing each as it finishes."""
    found: list[Result] = []
    for name in names:
        start_s = time.monotonic()
        scenario, tries = {**SCENARIOS, **ON_REQUEST}[name]
        result = scenario(workspace, tries, random.Random(SEED))
        results = result if isinstance(result, list) else [result] if result else []
        if not results:
            console.print(f"{name}: skipped, it needs the right to mount a disk")
        for row in results:
            row.seconds = (time.monotonic() - start_s) / len(results)
            console.print(f"{row.name}: {row.passed}/{row.tries} {row.what}; {row.remarks} ({row.seconds:.0f} s)")
        found += results
    return found


def compare_with_stock(results: list[Result], workspace: Workspace) -> None:
    """Measure stock Lightning in the scenarios that have a counterpart, and add it to their first row."""
    first = {row.name: row for row in reversed(results)}
    for name, row in first.items():
        if name in STOCK:
            scenario, tries = STOCK[name]
            baseline = scenario(workspace, tries, random.Random(SEED))
            row.stock = f"{baseline.passed}/{baseline.tries}"


def main(wanted: list[str]) -> int:
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    console = Console(width=None if sys.stdout.isatty() else 180)
    default = {**SCENARIOS, **TESTS}
    if not set(wanted) <= {*default, *ON_REQUEST}:
        console.print(f"scenarios must be among {', '.join([*default, *ON_REQUEST])}; got {', '.join(wanted)}")
        return 1
    names = wanted or [*default]
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos_") as folder:
        workspace = Workspace(Path(folder))
        results = inject([name for name in names if name not in TESTS], workspace, console)
        tested = [name for name in names if name in TESTS]
        results += run_tests(tested) if tested else []
        compare_with_stock(results, workspace)
    console.print(table(results))
    seconds, hardware = time.monotonic() - start_s, describe_hardware()
    console.print(f"{seconds:.0f} s, seed {SEED}, Python {platform.python_version()}, {hardware['cores']} cores")
    content = {
        "command": " ".join(["make chaos", *([f"SCENARIOS='{' '.join(wanted)}'"] if wanted else [])]),
        "date": time.strftime("%Y-%m-%d"),
        "scenarios": [vars(row) for row in results],
        "seed": SEED,
        "seconds": seconds,
        "versions": versions(),
        "hardware": hardware,
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(content, indent=2))
    return 0 if all(row.passed == row.tries for row in results) else 1


def table(results: list[Result]) -> Table:
    """Return the table that is printed at the end."""
    shown = Table()
    for column in ("scenario", "fault and expected outcome", "passed", "stock Lightning", "remarks", "seconds"):
        shown.add_column(column, justify="right" if column in ("passed", "seconds") else "left")
    for row in results:
        shown.add_row(row.name, row.what, f"{row.passed}/{row.tries}", row.stock, row.remarks, f"{row.seconds:.0f}")
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
