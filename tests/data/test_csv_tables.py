"""CSV tables from spreadsheets and scripts, and manifests as datasets."""

import re
from pathlib import Path

import pytest

from alexlab.data.audit.audit import audit_dataset
from alexlab.data.discovery import find_splits
from alexlab.data.manifest_splits import add_manifest_hashes
from alexlab.data.table import read_table
from alexlab.errors import DataError
from support.images import write_images

ROWS = [("a/000.png", "ant", "train"), ("b/000.png", "bee, wild", "train"), ("é.png", "ant", "val")]


def table(delimiter: str, header: str = "path class split", rows: list[tuple[str, ...]] = ROWS) -> str:
    def cell(text: str) -> str:
        return f'"{text}"' if delimiter in text else text

    return "\n".join(delimiter.join(map(cell, row)) for row in [header.split(), *rows]) + "\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["path class split", "Path CLASS Split", "split Filename Label"])
def test_usual_delimiters_encodings_and_headers_are_read(
    header: str, delimiter: str, encoding: str, end: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    rows = [row[-1:] + row[:-1] if header.startswith("split") else row for row in ROWS]
    path.write_bytes(table(delimiter, header, rows).replace("\n", end).encode(encoding))
    found = list(read_table(path, what="a manifest", needed=("path", "class")))
    assert [(row["path"], row["class"], row["split"]) for _, row in found] == ROWS
    assert [where for where, _ in found] == [f"{path}, line {number}" for number in (2, 3, 4)]


def test_blanks_around_cells_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(" path , class\n\na.jpg, cat \n\nb.jpg,dog,,\n")
    found = [row for _, row in read_table(tmp_path / "table.csv", what="labels", needed=("path", "class"))]
    assert [(row["path"], row["class"]) for row in found] == [("a.jpg", "cat"), ("b.jpg", "dog")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "with a column path or file or filename or image and a column class or label .*; .* has none"),
        (b"name,class\na,b\n", "table.csv has 'name', 'class'"),
        (
            b"path;class\na,b;c;d\n",
            "line 2: expected 2 cells, got 3; quote a path that contains the delimiter",
        ),
        (b'path,class\n"a,b\nc,d\n', "labels must be a CSV file; .* is not: unexpected end of data"),
        (b"path,Class,class\na,b,c\n", "must have each column once; .* repeats class"),
        (b"path,class\na,Gr\xf6n\n", r"line 2: class must be UTF-8; got Gr\\xf6n. .* iconv -f latin1 -t utf-8"),
        (b"path,class\na,b\0\n", "line 2: a cell contains a zero byte"),
        ("path,class\na,b\n".encode("utf-16-le"), "contains zero bytes: save it as UTF-8"),
        (b"\xff\xfep", "labels must be a CSV file; .* is not: .* truncated data"),
    ],
)
def test_malformed_tables_are_rejected(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_table(tmp_path / "table.csv", what="labels", needed=("path", "class")))


def write_list(root: Path, *lines: str) -> str:
    (root / "list.csv").write_text("\n".join(["path,class,split", *lines]))
    return str(root / "list.csv")


def test_a_table_from_a_spreadsheet_is_a_manifest(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"a": 2, "b": 2})
    lines = ["a/000.png;a;Training", "b/000.png;b;TRAIN", "a/001.png;a;Validation", "b/001.png;b;"]
    (root / "list.csv").write_bytes("\r\n".join(["\ufeffPath;Class;Split", *lines]).encode())
    splits = find_splits(str(root / "list.csv"), val_fraction=0.2, test_fraction=0.0)
    assert [list(split.paths) for _, split in splits.items()] == [["a/000.png", "b/000.png"], ["a/001.png"]]
    assert f"{root}/list.csv: skipped 1 image without a split" in splits.notes


@pytest.mark.parametrize(
    "again", ["a/000.png", "./a/000.png", "b/../a/000.png", "{root}/a/000.png", "a//000.png", "link/000.png"]
)
@pytest.mark.parametrize("rest", ["a,val", "b,train", "a,train"])
def test_a_manifest_that_lists_a_file_twice_is_rejected(
    again: str, rest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images(tmp_path, {"a": 2, "b": 2})
    (root / "link").symlink_to("a")
    monkeypatch.chdir(root)
    path = again.format(root=root)
    manifest = write_list(root, "a/000.png,a,train", "b/000.png,b,train", "b/001.png,b,val", f"{path},{rest}")
    message = f"repeats line 5 ({path}, {', '.join(reversed(rest.split(',')))}) and line 2 (a/000.png, train, a)"
    for each in (manifest, "list.csv"):
        with pytest.raises(DataError, match=re.escape(f"a manifest must list each file once; {each} {message}")):
            find_splits(each, val_fraction=0.2, test_fraction=0.0)


def test_manifest_hashes_match_paths_in_any_spelling(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"a": 4, "b": 4})
    splits = find_splits(str(root), val_fraction=0.25, test_fraction=0.0)
    paths = sorted(path for _, split in splits.items() for path in split.paths)
    lines = [f"{root}/{path},{number:064x}" for number, path in enumerate(paths)]
    manifest = tmp_path / "list.csv"
    manifest.write_text("\n".join(["path,sha256", *lines]))
    found = add_manifest_hashes(splits, str(manifest)).val
    assert found.hashes is not None
    assert [int.from_bytes(row.tobytes(), "big") for row in found.hashes] == [paths.index(path) for path in found.paths]
    manifest.write_text("\n".join(["path,sha256", *lines, f"./{paths[0]},{1:064x}"]))
    for call in (lambda: add_manifest_hashes(splits, str(manifest)), lambda: audit_dataset(str(root), str(manifest))):
        with pytest.raises(DataError, match="must list each file once"):
            call()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b/001.png,b,fold1", "the split of an image must be train, val, test or empty; .* has 'fold1' for b/001.png"),
        ("b/001.png,,val", "every row of a training manifest needs a class; .* has none for b/001.png"),
        ("b/001.png,A,train", "the names of classes must differ in more than case"),
    ],
)
def test_rows_that_a_run_cannot_use_are_rejected(line: str, message: str, tmp_path: Path) -> None:
    root = write_images(tmp_path, {"a": 2, "b": 2})
    manifest = write_list(root, "a/000.png,a,train", "b/000.png,b,train", "a/001.png,a,val", line)
    with pytest.raises(DataError, match=message):
        find_splits(manifest, val_fraction=0.2, test_fraction=0.0)


def test_split_folders_of_a_manifest_are_rejected(tmp_path: Path) -> None:
    manifest = write_list(write_images(tmp_path, {"a": 2}), "a/000.png,a,train")
    with pytest.raises(DataError, match=r"data\.splits must be null for a manifest"):
        find_splits(manifest, val_fraction=0.2, test_fraction=0.0, folders={"train": "a"})
