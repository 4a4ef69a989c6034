import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from alexlab.benchmark.roofline import share, train_flops
from alexlab.benchmark.table import Row, markdown, spread, table, write
from support.runs import plain

RATE = Row("fit", "epochs", [20.0, 40.0, 30.0], "images/s", "others", [10.0, 10.0, 15.0], "the disk")
TIME = Row("start", "--help", [2.0], "s", "bare", [1.0])
ALONE = Row("machine", "copies", [1234.5], "GB/s")


def test_more_is_better_of_rates_and_less_of_times() -> None:
    assert RATE.ratios == [2.0, 4.0, 2.0]
    assert TIME.ratios == [0.5]
    assert RATE.plain()["ratio"] == 2.0
    assert "ratio" not in ALONE.plain()


def test_a_table_shows_medians_and_extremes() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table([RATE, TIME, ALONE], "title"))
    text = console.export_text()
    assert "30 (20, 40) images/s" in text
    assert "2.00 (2.00, 4.00)" in text
    assert "the disk" in text
    assert "| fit | epochs | 30 (20, 40) images/s | others | 10 (10, 15) images/s | 2.00 (2.00, 4.00) | the disk |" in (
        markdown([RATE])
    )
    assert spread([1234.5]) == "1234"
    assert spread([0.01234, 0.02]) == "0.0162 (0.0123, 0.02)"


def test_everything_is_in_the_json(tmp_path: Path) -> None:
    write([RATE, ALONE], {"device": "cpu"}, tmp_path)
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert found["device"] == "cpu"
    assert [row["what"] for row in found["rows"]] == ["epochs", "copies"]
    assert found["rows"][0]["values"] == [20.0, 40.0, 30.0]
    assert (tmp_path / "benchmark.png").stat().st_size > 1000


def test_operations_of_alexnet_and_their_share() -> None:
    """4.145 GFLOP for an image's training step and 1.428 forward, worked out by hand for 1000 classes at 224."""
    config = plain("model=alexnet", "data=folder", "data.root=x")
    train, forward = train_flops(config, 1000)
    assert train / 1e9 == pytest.approx(4.145, abs=0.005)
    assert forward / 1e9 == pytest.approx(1.428, abs=0.005)
    assert (
        share([{"rate": 10.0}, {"rate": 30.0}], 5e9, [{"rate": 100.0}, {"rate": 100.0}]) == "100 % of matrix products"
    )
