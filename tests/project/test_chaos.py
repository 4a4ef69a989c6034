"""The scenarios of `make chaos`, with fewer tries."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaos import files, runs, stock
from chaos.__main__ import TESTS, table
from chaos.harness import Result, Workspace
from support.runs import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("scenario", "tries"),
    [
        (runs.sigkill, 5),
        (runs.sigterm, 3),
        (files.sigkill_in_save, 20),
        (files.disk_full, 3),
        (runs.restarts, 1),
    ],
)
def test_every_try_passes(
    scenario: Callable[..., Any],
    tries: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = scenario(Workspace(tmp_path, monkeypatch.setattr), tries, random.Random(2))
    if result is None:
        pytest.skip("needs the right to mount a disk")
    assert (result.passed, result.tries) == (tries, tries), result.remarks


@pytest.mark.filterwarnings("ignore")  # Lightning warns about its own checkpoints and loaders
def test_a_failed_try_is_counted_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock Lightning does not resume bit for bit within an epoch, so the harness must report a failure."""
    result = stock.resume(Workspace(tmp_path, monkeypatch.setattr), 1, random.Random(1))
    assert (result.passed, result.tries) == (0, 1)
    assert table([result, Result("x", "nothing", 1, 2, stock="0/3")]).row_count == 2


def test_every_scenario_has_tests_and_every_marked_test_a_scenario() -> None:
    marked = [
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r'mark\.scenario\(name="(\w+)"\)', path.read_text())
    ]
    assert set(marked) == set(TESTS)
    assert len(marked) > 40
