"""CSV cells contain no formulas, and are read back unchanged."""

import csv
from pathlib import Path

import pytest

from alexlab.data.manifest import ManifestRow, read_manifest, write_manifest
from alexlab.data.unreadable import UnreadableLog
from alexlab.errors import ImageError
from alexlab.output.csv_files import escape_formula, unescape_formula, write_csv

pytestmark = pytest.mark.scenario(name="csv_formulas")

TEXTS = (
    *("=cmd()", "+x", "-a.jpg", "@home", "\tx", "\rx", "\nx", "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20x"),
    *("'=x", "''@x", "'", "'x", "", "x", "a=b", "-", "--", "-1;2", "=1", "a,b", 'a"b', "é"),
)


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_texts_are_read_back_unchanged(text: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [["text", "number"], [text, -0.5]])
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        _, (cell, number) = csv.reader(file)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
    assert unescape_formula(cell) == text and number == "-0.5"


@pytest.mark.parametrize("number", [-0.5, -3, "-0.5", "+1e-5", "-inf", "-nan", None, True])
def test_numbers_stay_numbers(number: object) -> None:
    assert escape_formula(number) is number


def test_manifests_keep_paths_and_classes(tmp_path: Path) -> None:
    expected = [ManifestRow(text or "none", label=text, size=1) for text in TEXTS] + [
        ManifestRow("\udcff\u202e.png", label="-")
    ]
    write_manifest(expected, tmp_path / "manifest.csv")
    assert [*read_manifest(tmp_path / "manifest.csv", str(tmp_path)).values()] == expected


def test_a_split_table_is_read_as_labels(tmp_path: Path) -> None:
    from alexlab.data.audit.unsplit import find_unsplit

    for name in ("-a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    write_manifest([ManifestRow("-a.jpg", label="@home"), ManifestRow("b.jpg", label="'=x")], tmp_path / "split.csv")
    source = find_unsplit(str(tmp_path), labels=str(tmp_path / "split.csv"), pattern="", group=None)
    assert (source.paths, source.classes) == (["-a.jpg", "b.jpg"], ["@home", "'=x"])


def test_unreadable_files_are_escaped_once_though_the_list_is_written_twice(tmp_path: Path) -> None:
    log = UnreadableLog(tmp_path / "unreadable.csv")
    for path in ("=b.png", "-a\n.png", "=b.png"):
        log.add(ImageError("no", path=path, code="x", reason="@y"))
    assert log.finish() == 2
    with (tmp_path / "unreadable.csv").open(newline="") as file:
        assert [*csv.reader(file)] == [["path", "code", "reason"], ["'-a\n.png", "x", "'@y"], ["'=b.png", "x", "'@y"]]
