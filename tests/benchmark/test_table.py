"""Tables, JSON and figures of the results."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from alexlab.benchmark.roofline import share_of_ceiling, train_flops
from alexlab.benchmark.table import Row, format_spread, markdown, table, write
from support.runs import plain

RATE = Row("epochs", "epochs", [20.0, 40.0, 30.0], "images/s", "others", [10.0, 10.0, 15.0], "the disk")
TIME = Row("startup", "--help", [2.0], "s", "bare", [1.0])
ALONE = Row("machine", "copies", [1234.5], "GB/s")


def test_higher_rates_and_lower_times_are_better() -> None:
    assert RATE.ratios == [2.0, 4.0, 2.0]
    assert TIME.ratios == [0.5]
    assert RATE.as_dict()["ratio"] == 2.0
    assert RATE.as_dict()["baseline_median"] == 10.0
    assert "ratio" not in ALONE.as_dict()


def test_tables_show_medians_and_extremes() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table([RATE, TIME, ALONE], "title"))
    text = console.export_text()
    assert "30 (20, 40) images/s" in text
    assert "2.00 (2.00, 4.00)" in text
    assert "the disk" in text
    line = "| epochs | epochs | 30 (20, 40) images/s | others | 10 (10, 15) images/s | 2.00 (2.00, 4.00) | the disk |"
    assert line in markdown([RATE])


def test_format_spread() -> None:
    assert format_spread([1234.5]) == "1234"
    assert format_spread([0.01234, 0.02]) == "0.0162 (0.0123, 0.02)"
    assert format_spread([1.0, 2.0, 3.0], digits=2) == "2.00 (1.00, 3.00)"


def test_json_has_all_rows(tmp_path: Path) -> None:
    write([RATE, ALONE], {"device": "cpu"}, tmp_path)
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert content["device"] == "cpu"
    assert [row["what"] for row in content["rows"]] == ["epochs", "copies"]
    assert content["rows"][0]["values"] == [20.0, 40.0, 30.0]
    assert (tmp_path / "benchmark.png").stat().st_size > 1000


def test_operations_of_alexnet_and_their_share() -> None:
    """4.145 GFLOP per image of a training step and 1.428 forward, computed by hand for 1000 classes at 224."""
    config = plain("model=alexnet", "data=folder", "data.root=x")
    train, forward = train_flops(config, 1000)
    assert train / 1e9 == pytest.approx(4.145, abs=0.005)
    assert forward / 1e9 == pytest.approx(1.428, abs=0.005)
    ceiling = [{"rate": 100.0}, {"rate": 100.0}]
    assert share_of_ceiling([{"rate": 10.0}, {"rate": 30.0}], 5e9, ceiling) == "100 % of matrix products"
