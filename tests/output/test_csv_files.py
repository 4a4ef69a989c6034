"""CSV cells: spreadsheets see no formula in them, and we read back what we wrote."""

import csv
from pathlib import Path

import pytest

from alexlab.data.manifest import ManifestRow, read_manifest, write_manifest
from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import ImageError
from alexlab.output.csv_files import neutralised, restored, write_csv

pytestmark = pytest.mark.scenario(name="csv_formulas")

TEXTS = (
    *("=cmd()", "+x", "-a.jpg", "@home", "\tx", "\rx", "\nx", "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20x"),
    *("'=x", "''@x", "'", "'x", "", "x", "a=b", "-", "--", "-1;2", "=1", "a,b", 'a"b', "é"),
)


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_a_text_comes_back_as_it_was(text: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [["text", "number"], [text, -0.5]])
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        _, (cell, number) = csv.reader(file)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
    assert restored(cell) == text and number == "-0.5"


@pytest.mark.parametrize("number", [-0.5, -3, "-0.5", "+1e-5", "-inf", "-nan", None, True])
def test_numbers_stay_numbers(number: object) -> None:
    assert neutralised(number) is number


def test_a_manifest_keeps_its_paths_and_classes(tmp_path: Path) -> None:
    wanted = [ManifestRow(text or "none", label=text, size=1) for text in TEXTS] + [
        ManifestRow("\udcff\u202e.png", label="-")
    ]
    write_manifest(wanted, tmp_path / "manifest.csv")
    assert [*read_manifest(tmp_path / "manifest.csv", str(tmp_path)).values()] == wanted


def test_the_table_of_a_split_is_read_as_labels(tmp_path: Path) -> None:
    from alexlab.data.audit.unsplit import find_unsplit

    for name in ("-a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    write_manifest([ManifestRow("-a.jpg", label="@home"), ManifestRow("b.jpg", label="'=x")], tmp_path / "split.csv")
    source = find_unsplit(str(tmp_path), labels=str(tmp_path / "split.csv"), pattern="", group=None)
    assert (source.paths, source.classes) == (["-a.jpg", "b.jpg"], ["@home", "'=x"])


def test_the_list_of_skipped_files_is_written_twice_and_neutralised_once(tmp_path: Path) -> None:
    skipped = UnreadableLog(tmp_path / "skipped.csv")
    for path in ("=b.png", "-a\n.png", "=b.png"):
        skipped.add(ImageError("no", path=path, code="x", reason="@y"))
    assert skipped.finish() == 2
    with (tmp_path / "skipped.csv").open(newline="") as file:
        assert [*csv.reader(file)] == [["path", "code", "reason"], ["'-a\n.png", "x", "'@y"], ["'=b.png", "x", "'@y"]]
