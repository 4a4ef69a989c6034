"""`make chaos`: how a run bears what happens to it, counted; `make chaos FIGURES="R1 R4"` for some of the figures."""

import json
import logging
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from alexlab.distributed.hardware import describe_hardware
from alexlab.runs.provenance import versions
from chaos import commands, files, runs, stock
from chaos.harness import Figure, Place

SEED = 1
ROOT = Path(__file__).parents[2]
OUT = ROOT / "outputs/chaos.json"
# name -> figure, tries
FIGURES: dict[str, tuple[Callable[..., Any], int]] = {
    "R1": (runs.killed, 100),
    "R2": (runs.resumed, 8),
    "R4": (files.killed_in_save, 200),
    "R5": (files.disk_full, 20),
    "R7": (runs.told_to_stop, 50),
    "R8": (runs.lost, 20),
    "R8 restarts": (runs.restarted, 10),
    "R10": (runs.repeated, 4),
}
# Only when asked for: each try starts the command twice, which takes a minute on 2 cores.
ALSO: dict[str, tuple[Callable[..., Any], int]] = {"command": (commands.killed, 10)}
# name -> the same of Lightning without alexlab, tries
STOCK: dict[str, tuple[Callable[..., Any], int]] = {
    "R1": (stock.resumed, 3),
    "R4": (files.stock_killed_in_save, 50),
    "E1": (stock.uneven, 16),
}
# name -> what, and the tests that count it: files, each with a pattern for the beginning of their names
TESTS: dict[str, tuple[str, dict[str, str]]] = {
    "R9": (
        "a loss, gradient or weight that is not finite: ends at that step, its images listed, none of it saved",
        {"training/test_nonfinite.py": "test_"},
    ),
    "E1": (
        "1 to 17 images on 1, 2 and 3 ranks: the counts are those of one process",
        {"training/test_exact_scores.py": "test_the_counts"},
    ),
    "S1": (
        "sweep folders that name a class, a resolver or a key of Hydra: refused, nothing executed",
        {"cli/test_attacks.py": "test_(a_sweep_record_has|a_corrupt_sweep|text_in|a_journal)"},
    ),
    "S2": (
        "sweep folders with log handlers, launcher options and names of another shape: refused, nothing truncated",
        {"cli/test_attacks.py": "test_(a_sweep_record_of|what_hydra)"},
    ),
    "S3": (
        "downloads under equal names, corrupt copies, other schemes, servers that fail: the right file or none",
        {"models/test_downloads.py": "test_"},
    ),
    "S4": (
        "configs and checkpoints with a class where none belongs, or another than its place takes: refused before any import",
        {
            "config/test_allowlist.py": "test_(a_malicious_config|the_command|only|a_target|a_malicious_checkpoint)",
            "cli/test_attacks.py": "test_a_(class|model)",
        },
    ),
    "S5": (
        "quarantines whose list leads elsewhere: nothing moved",
        {"data/test_data_audit.py": "test_(a_quarantine_of|a_listed_file|what_is_not_moved)"},
    ),
    "S6": (
        "tables whose classes or paths lead elsewhere: refused by row, nothing written",
        {"data/test_split.py": "test_(a_class_must|a_pattern_must|the_files_of|classes_that)"},
    ),
    "S7": (
        "run folders that lead elsewhere, by their config or by links: refused, nothing written outside",
        {"cli/test_attacks.py": "test_(a_resumed_run|made_data|links)"},
    ),
    "S8": (
        "names with control characters and markup, wherever they are shown: as they are or escaped",
        {"output/test_escape.py": "test_"},
    ),
    "S9": (
        "cells of tables that a spreadsheet would compute: neutralised, and read back",
        {"output/test_csv_files.py": "test_"},
    ),
    "H1": (
        "temporary folders with a long path: short sockets, or one sentence",
        {"runs/test_atomic.py": "test_(sockets|no_folder)"},
    ),
    "H2": (
        "hang-ups and ignored signals: a preemption, or ignored",
        {"distributed/test_signals.py": "test_(what_was_ignored|a_closed)"},
    ),
    "H3": (
        "FIFOs, devices, sockets and endless files among the images: named, nothing hangs",
        {"data/test_image_file.py": "test_(only_regular|a_check|a_pack|shards|a_device)"},
    ),
    "H5": (
        "full disks at the start and during a run: named, or the run goes on",
        {"runs/test_atomic.py": "test_(an_error|a_run|a_disk|a_list|events|a_real)"},
    ),
    "H6": (
        "runs of another length under each schedule: the rate of a run of that length",
        {"training/test_schedules.py": "test_a_run_(of|that)"},
    ),
    "H7": ("killed loader processes: one sentence", {"distributed/test_failures.py": "test_"}),
    "H8": (
        "corrupt records and checkpoints: named, and resumed from what is whole",
        {
            "runs/test_record.py": "test_a_corrupt_record",
            "training/test_restore.py": "test_",
            "config/test_allowlist.py": "test_a_checkpoint",
        },
    ),
    "H9": (
        "checkpoints of nets without end, of NaN, of classes that are none: refused in bounded time",
        {"inference/test_foreign_checkpoints.py": "test_"},
    ),
    "D3": ("files of at most 1 MB, large or damaged: within 1 GB and 10 s", {"data/test_bombs.py": "test_"}),
}


def tested(names: list[str]) -> list[Figure]:
    """The figures that tests count, in one process of their own."""
    with tempfile.TemporaryDirectory(prefix="chaos_") as folder:
        listed = Path(folder) / "tests.xml"
        files = sorted({str(ROOT / "tests" / file) for name in names for file in TESTS[name][1]})
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={listed}", *files]
        start_s = time.monotonic()
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        took_s = time.monotonic() - start_s
        cases = list(ElementTree.parse(listed).iter("testcase"))
    found = []
    for name in names:
        what, patterns = TESTS[name]
        modules = {"tests." + file.removesuffix(".py").replace("/", "."): begin for file, begin in patterns.items()}
        own = [
            case
            for case in cases
            if (begin := modules.get(case.get("classname", ""))) and re.match(begin, case.get("name", ""))
        ]
        passed = sum(not any(child.tag in ("failure", "error", "skipped") for child in case) for case in own)
        found.append(Figure(name, what, passed, len(own), took_s=took_s / len(names)))
    return found


def main(wanted: list[str]) -> int:
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    console = Console(width=None if sys.stdout.isatty() else 180)
    found: list[Figure] = []
    known, measured = {**FIGURES, **TESTS}, {**FIGURES, **ALSO}
    if not set(wanted) <= {*known, *ALSO}:
        console.print(f"figures are {', '.join([*known, *ALSO])}; got {', '.join(wanted)}")
        return 1
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos_") as folder:
        place = Place(Path(folder))
        for name in [name for name in wanted or known if name in measured]:
            begun_s = time.monotonic()
            figure, tries = measured[name]
            result = figure(place, tries, random.Random(SEED))
            new = result if isinstance(result, list) else [result] if result else []
            if not new:
                console.print(f"{name}: cannot be measured here: it needs the right to mount a disk")
            for row in new:
                row.took_s = (time.monotonic() - begun_s) / len(new)
                console.print(f"{row.name}: {row.done}/{row.of} {row.what}; {row.more} ({row.took_s:.0f} s)")
            found += new
        names = [name for name in wanted or known if name in TESTS]
        found += tested(names) if names else []
        for row in found:
            if row.name in STOCK and not row.stock and row is next(each for each in found if each.name == row.name):
                figure, tries = STOCK[row.name]
                beside = figure(place, tries, random.Random(SEED))
                row.stock = f"{beside.done}/{beside.of}"
    console.print(table(found))
    total_s = time.monotonic() - start_s
    console.print(
        f"{total_s:.0f} s, seed {SEED}, Python {platform.python_version()}, {describe_hardware()['cores']} cores"
    )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        json.dumps(
            {
                "figures": [vars(row) for row in found],
                "seed": SEED,
                "took_s": total_s,
                "versions": versions(),
                "hardware": describe_hardware(),
            },
            indent=2,
        )
    )
    return 0 if all(row.done == row.of for row in found) else 1


def table(found: list[Figure]) -> Table:
    """What was counted."""
    result = Table()
    for column in ("", "what", "right", "stock Lightning", "besides", "seconds"):
        result.add_column(column, justify="right" if column in ("right", "seconds") else "left")
    for row in found:
        result.add_row(row.name, row.what, f"{row.done}/{row.of}", row.stock, row.more, f"{row.took_s:.0f}")
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
