"""The list of runs: order, sweeps, filters, widths, other formats, records from somebody else, and its duration."""

import csv
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

from alexlab.cli import runs as module
from alexlab.errors import ConfigError
from alexlab.records.lock import RunLock
from support.runs import ROOT, plain, write_record
from support.terminal import open_terminal, screen


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two runs and a sweep of three."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["runs.py"])
    folder = tmp_path / "outputs"
    write_record(folder / "train/2026-11-26/10-00-00_a", top1=0.25, tags=["paper", "x"], start_s=1e9)
    write_record(
        folder / "train/2026-11-27/10-00-00_b", top1=None, status="failed", reason="DataError: no\x1b[31m image", start_s=3e9
    )  # fmt: skip
    for number, top1 in enumerate((0.5, 0.75, None)):
        status = "interrupted" if top1 is None else "finished"
        write_record(
            folder / f"sweeps/day/s/{number}_lr", top1=top1, tags=["paper"], status=status, start_s=2e9 + number
        )
    (folder / "sweeps/day/s/sweep.json").write_text("{}")
    return folder


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    with pytest.raises(SystemExit) as exit_:
        module.main(arguments)
    assert exit_.value.code == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        module.main(arguments)
    assert exit_.value.code == ConfigError.exit_code
    return capsys.readouterr().err.strip()


def test_runs_are_listed_newest_first_and_those_of_a_sweep_together(outputs, capsys):
    lines = listed(capsys)
    header, failed, reason, sweep, *jobs, last, total = lines
    assert header.split() == ["status", "score", "epochs", "time", "started", "tags", "folder"]
    assert re.match(r"failed +0:01:30 +2065-01-24 \d\d:20 .*outputs/train/2026-11-27/10-00-00_b$", failed)
    assert reason == r"  DataError: no\x1b[31m image"
    assert re.match(r"sweep 2/3 +top-1 0\.7500 .*outputs/sweeps/day/s$", sweep)
    assert [re.split(r" {2,}", job)[-1] for job in jobs] == ["0_lr", "1_lr", "2_lr"]
    assert re.match(r"finished +top-1 0\.5000 +20/20 +0:01:30 +2033-05-18 .*  paper +0_lr$", jobs[0])
    assert last.split()[-3:] == ["paper,", "x", "outputs/train/2026-11-26/10-00-00_a"]
    assert total == "5 runs: 3 finished, 1 failed, 1 interrupted"


def test_filters_and_the_limit(outputs, capsys):
    assert len(listed(capsys, "tags=[paper,x]")) == 3
    assert [line.split()[0] for line in listed(capsys, "--status", "failed,interrupted")[1:]] == [
        *("failed", "DataError:", "sweep", "interrupted", "2")
    ]
    lines = listed(capsys, "outputs", "limit=2", "tags=paper")
    assert [re.split(r" {2,}", line)[-1] for line in lines[2:5]] == ["0_lr", "1_lr", "1 more"]
    assert lines[-2:] == ["4 runs: 3 finished, 1 interrupted", "2 more: alexlab runs tags=paper limit=all"]
    assert (
        refused(capsys, "status=running")
        == "no run has the status running; the runs found: 3 finished, 1 failed, 1 interrupted"
    )
    assert "no run has the tags y; the tags of the 5 runs are paper, x" in refused(capsys, "tags=y")


def test_a_run_in_progress_has_its_time_so_far(outputs, capsys):
    folder = write_record(outputs / "train/c", status="running", attempts=[{"start_s": time.time() - 3600}])
    with RunLock(folder):
        assert re.match(r"running +top-1 0\.5000 +20/20 +1:00:0\d ", listed(capsys, "outputs/train/c")[1])
    assert listed(capsys, "outputs/train/c")[1].startswith("interrupted ")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_fit_the_terminal_and_paths_are_whole(outputs, monkeypatch, width):
    out = open_terminal(monkeypatch, width=width)
    with pytest.raises(SystemExit):
        module.main([])
    lines = screen(out.getvalue())
    assert max(map(cell_len, lines)) <= width
    assert any(line.endswith("outputs/train/2026-11-26/10-00-00_a") for line in lines)
    run = lines[-4 if width < 200 else -3]
    assert ("outputs" in run, "paper, x" in lines[-3]) == (True, True)
    assert ("started" in lines[1]) == (width == 80)


def test_other_formats_have_every_key_and_no_control_characters(outputs, capsys):
    write_record(
        outputs / "d", tags=["=1+1", "a\x1b[2J"], config={"tags": ["=1+1", "a\x1b[2J"], "optimizer": {"lr": 0.1}}
    )
    rows = list(csv.DictReader(io.StringIO("\n".join(listed(capsys, "format=csv", "limit=1")))))
    assert len(rows) == 6
    by_folder = {row["folder"]: row for row in rows}
    assert (by_folder["outputs/d"]["optimizer.lr"], by_folder["outputs/d"]["tags"]) == ("0.1", r"'=1+1, a\x1b[2J")
    assert by_folder["outputs/train/2026-11-26/10-00-00_a"]["val/top1"] == "0.25"
    rows = json.loads("\n".join(listed(capsys, "format=json")))
    assert [row["status"] for row in rows].count("finished") == 4


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", "{}", '{"status": "finished", "config": 1}', "\xff", "[" * 100_000,
        '{"status": "failed", "config": {"tags": ["\\u001b[2J"], "trainer": {"max_epochs": 1e400}}, "last": {"epoch": 1e308}, "reason": "\\u001b[2J\\nx"}',
        '{"status": "finished", "config": {"trainer": []}, "choices": {}, "attempts": [{"start_s": NaN}]}',
        '{"status": "finished", "config": {}, "best": {"top1": NaN, "epoch": Infinity}}',
        '{"status": "finished", "config": {}, "best": {"top1": 1' + "0" * 400 + "}}",
        '{"status": "finished", "config": {}, "attempts": [{"start_s": 1e300}]}',
        '{"status": "finished", "config": {}, "attempts": [{"start_s": 1, "elapsed_s": "x"}]}',
        '{"status": "finished", "config": {"x": "${oc.env:HOME}", "_target_": "os.abort"}}',
    ],
)  # fmt: skip
def test_records_from_somebody_else_are_a_row(outputs, capsys, content):
    (outputs / "foreign\x1b[2J").mkdir()
    (outputs / "foreign\x1b[2J/run.json").write_bytes(content.encode("latin-1"))
    lines = listed(capsys)
    assert any(r"outputs/foreign\x1b[2J" in line for line in lines)
    assert "\x1b" not in "".join(lines)
    assert lines[-1].startswith("6 runs: ")
    listed(capsys, "format=csv")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("stauts=failed", "alexlab runs has no key stauts; did you mean status?"),
        ("x=1", "alexlab runs has no key x; the keys are status, tags, limit, format"),
        (
            "status=broken",
            "status must be one of running, finished, pruned, failed, interrupted, unreadable; got broken",
        ),
        ("limit=0", "limit must be a positive integer or all; got 0"),
        ("format=xml", "format must be one of table, csv, json; got xml"),
        ("nowhere", "no run found: there is no run.json in or below nowhere"),
    ],
)
def test_mistakes_are_answered(outputs, capsys, argument, message):
    assert refused(capsys, argument) == message


@pytest.mark.slow
def test_500_runs_are_listed_within_a_second_without_torch(tmp_path):
    config = plain()
    for number in range(500):
        write_record(tmp_path / f"outputs/train/day/{number}", config=config, start_s=1e9 + number)
    code = "import sys; from alexlab.cli.runs import main\ntry: main([])\nfinally: print('torch' in sys.modules)"
    durations = []
    for _ in range(3):
        start_s = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True)  # fmt: skip
        durations.append(time.perf_counter() - start_s)
    assert done.stdout.splitlines()[-2:] == ["470 more: alexlab runs limit=all", "False"]
    assert min(durations) < 1.5, "0.7 s on 2 busy cores"
