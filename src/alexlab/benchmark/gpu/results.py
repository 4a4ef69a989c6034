"""Results of the suite `gpu`, written to gpu.json and gpu.md whenever one arrives."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alexlab.benchmark.table import Row, markdown
from alexlab.output.escape import escape_markdown
from alexlab.records.atomic import write_atomic

PASSED, FAILED, NEEDS_CUDA = "passed", "failed", "needs CUDA"
MET, MISSED = "met", "missed"


@dataclass(frozen=True)
class Check:
    """A property that was checked, or a goal that was compared with a measurement.

    Args:
        what: the property.
        measured: what was found.
        required: what must hold.
        outcome: one of the constants of this module.
    """

    what: str
    measured: str
    required: str
    outcome: str


def within(what: str, error: float, tolerance: float) -> Check:
    """Return the check that an error is at most a tolerance; NaN is not."""
    outcome = PASSED if error <= tolerance else FAILED
    return Check(what, f"{error:.2g}", f"at most {tolerance:g}", outcome)


def equal(what: str, number: int, total: int, things: str) -> Check:
    """Return the check that all of some things are equal, of which there must be at least one."""
    return Check(what, f"{number} of {total} {things} equal", "all", PASSED if number == total > 0 else FAILED)


def goal(what: str, value: float, least: float) -> Check:
    """Return the comparison of a ratio with the least that is wanted."""
    return Check(what, f"{value:.2f}", f"at least {least:g}", MET if value >= least else MISSED)


@dataclass
class PartResult:
    """Outcome of a part.

    Args:
        name: name of the part.
        outcome: `running`, `finished`, or why it did not finish.
        seconds: duration.
        checks, rows: results so far.
    """

    name: str
    outcome: str = "running"
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


@dataclass
class Results:
    """All results so far.

    Args:
        about: date, hardware, versions and settings.
        out_dir: folder of gpu.json and gpu.md.
        parts: results by part, in the order in which they ran.
    """

    about: dict[str, Any]
    out_dir: Path
    parts: list[PartResult] = field(default_factory=list)
    start_s: float = field(default_factory=time.monotonic)

    def add(self, part: PartResult, item: Check | Row | dict[str, Any]) -> None:
        """Add a result of a part; a dict describes the device."""
        if isinstance(item, Check):
            part.checks.append(item)
        elif isinstance(item, Row):
            part.rows.append(item)
        else:
            self.about["hardware"] |= item
        self.write()

    def write(self) -> None:
        """Write gpu.json and gpu.md."""
        seconds = round(time.monotonic() - self.start_s, 1)
        parts = [
            {**asdict(part), "rows": [row.as_dict() for row in part.rows], "seconds": round(part.seconds, 1)}
            for part in self.parts
        ]
        content = json.dumps({**self.about, "seconds": seconds, "parts": parts}, indent=2) + "\n"
        write_atomic(self.out_dir / "gpu.json", content.encode())
        write_atomic(self.out_dir / "gpu.md", self.markdown().encode())

    def markdown(self) -> str:
        """Return a list of the parts, a table of the checks and one of the measurements."""
        hardware, versions = self.about["hardware"], self.about["versions"]
        title = f"# {hardware.get('gpu', 'no GPU')}, {hardware['cores']} CPU cores, torch {versions['torch']}"
        checks = [check for part in self.parts for check in part.checks]
        rows = [row for part in self.parts for row in part.rows]
        parts = _table(("part", "outcome", "seconds"), [(p.name, p.outcome, f"{p.seconds:.0f}") for p in self.parts])
        sections = [title, parts]
        if checks:
            columns = ("check or goal", "measured", "required", "outcome")
            sections.append(_table(columns, [tuple(asdict(check).values()) for check in checks]))
        return "\n\n".join([*sections, *([markdown(rows)] if rows else [])]).rstrip() + "\n"

    @property
    def problems(self) -> list[str]:
        """Failed checks and unfinished parts, one line each."""
        failed = [check.what for part in self.parts for check in part.checks if check.outcome == FAILED]
        return [*failed, *(f"{part.name}: {part.outcome}" for part in self.parts if part.outcome != "finished")]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(map(escape_markdown, row))} |" for row in rows)])
