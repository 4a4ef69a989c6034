"""Commands whose output is closed, full or in another encoding; without torch, so that each takes a second."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.runs import ROOT, environment

SAYS = """
import os, sys
from alexlab.cli.streams import check_output, open_streams, restart_in_utf8
from alexlab.errors import DiskError
restart_in_utf8()
open_streams()
open_streams()
descriptor = os.open("/dev/null", os.O_RDONLY)
for _ in range(3000):
    print("猫", "\\udcff", "a line")
print("err 猫", file=sys.stderr, flush=True)
try:
    check_output()
except DiskError as error:
    print(error, file=sys.stderr)
sys.stdout.flush()
report = f"{descriptor} {sys.getfilesystemencoding()} {sys.stdin.read(1)!r} end"
open(sys.argv[1], "w").write(report)
"""


@pytest.mark.parametrize(
    ("overrides", "stderr"),
    [
        ("", "err 猫\n"),
        (">&-", "err 猫\n"),
        ("2>&-", ""),
        ("<&- >&- 2>&-", ""),
        ("| head -1", "err 猫\n"),
        ("2>&1 | head -1", ""),
        (">/dev/full", "err 猫\ncannot write to standard output: No space left on device\n"),
    ],
)
def test_closed_output_does_not_stop_a_command(tmp_path: Path, overrides: str, stderr: str) -> None:
    result = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" "$2" {overrides}', sys.executable, SAYS, str(tmp_path / "end")],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=environment(PYTHONPATH=str(ROOT / "src"), PYTHONUTF8="1"),
        timeout=60,
    )
    assert (result.returncode, result.stderr.decode()) == (0, stderr)
    report = (tmp_path / "end").read_text().split()
    assert int(report[0]) > 2, "a file that is opened does not get what is printed"
    assert report[1:] == ["utf-8", "''", "end"]


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_other_encodings(tmp_path: Path, variables: dict[str, str]) -> None:
    own = environment(PYTHONPATH=str(ROOT / "src"), **variables)
    program = tmp_path / "says.py"  # an argument would be decoded as the locale says
    program.write_text(SAYS, encoding="utf-8")
    overrides = [sys.executable, str(program), str(tmp_path / "end")]
    result = subprocess.run(overrides, capture_output=True, env=own, timeout=60)
    assert result.returncode == 0, result.stderr.decode()
    first = "猫" if "LC_ALL" in variables else r"\u732b"
    assert result.stdout.decode().splitlines()[0] == rf"{first} \udcff a line"
    assert "utf-8" in (tmp_path / "end").read_text()


def test_a_command_runs_without_any_stream(tmp_path: Path) -> None:
    line = f'"{sys.executable}" "{ROOT}/src/summary.py" --help >&- 2>&-'
    assert subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), timeout=60).returncode == 0
