"""The figures of `make chaos`, with fewer tries."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaos import files, runs, stock
from chaos.__main__ import TESTS, table
from chaos.harness import Figure, Place
from support.runs import ROOT


@pytest.mark.parametrize(
    ("figure", "tries"),
    [
        (runs.killed, 5),
        (runs.told_to_stop, 3),
        (files.killed_in_save, 20),
        (files.disk_full, 3),
        (runs.restarted, 1),
    ],
)
def test_a_few(
    figure: Callable[..., Any],
    tries: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = figure(Place(tmp_path, monkeypatch.setattr), tries, random.Random(2))
    if result is None:
        pytest.skip("a disk cannot be mounted here")
    assert (result.done, result.of) == (tries, tries), result.more


@pytest.mark.filterwarnings("ignore")  # what Lightning says of its own ways
def test_a_figure_that_comes_out_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning by itself does not resume bit for bit inside of an epoch; that the harness sees it is what makes it a test."""
    found = stock.resumed(Place(tmp_path, monkeypatch.setattr), 1, random.Random(1))
    assert (found.done, found.of) == (0, 1)
    assert table([found, Figure("R0", "nothing", 1, 2, stock="0/3")]).row_count == 2


def test_the_tests_that_are_counted_exist() -> None:
    for _, patterns in TESTS.values():
        for file, pattern in patterns.items():
            names = re.findall(r"^def (test_\w+)", (ROOT / "tests" / file).read_text(), re.MULTILINE)
            begins = re.fullmatch(r"([^(]*)(?:\((.*)\))?", pattern)
            assert begins is not None
            for end in (begins[2] or "").split("|"):
                assert any(name.startswith(begins[1] + end) for name in names), (file, pattern, end)
