"""Splitting a dataset: the split is the one a run would make, from any source of labels, and written all or nothing."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from alexlab.data.audit.unsplit import find_unsplit
from alexlab.data.discovery import find_splits
from alexlab.errors import ConfigError, DataError, DiskError
from alexlab.records.run import Run
from alexlab.tasks.prepare import main
from support.images import write_images
from support.runs import plain, rows


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Files named after class and person: cat.p3.07.png."""
    root = tmp_path / "flat"
    write_images(tmp_path, {"images": 60})
    root.mkdir()
    for number, path in enumerate(sorted((tmp_path / "images").iterdir())):
        path.rename(root / f"{('cat', 'dog')[number % 2]}.p{number // 4}.{number:02d}.png")
    return root


def split(tmp_path: Path, *overrides: str) -> Path:
    out = tmp_path / "out"
    main(Run(config=plain("action=split", f"out={out}", *overrides, name="prepare"), dir=tmp_path))
    return out


def files(folder: Path) -> set[str]:
    return {os.path.relpath(path, folder) for path in folder.rglob("*.png")}


def test_split_equals_that_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_images(tmp_path / "data", {"a": 20, "b": 30, "b/deep": 10, ".": 2})
    out = split(tmp_path, f"data.root={root}", "data.val_fraction=0.25", "data.test_fraction=0.1")
    expected = find_splits(str(root), val_fraction=0.25, test_fraction=0.1)
    assert "skipped 2 images outside the class folders" in capsys.readouterr().out.replace("\n", " ")
    assert files(out) == {f"{name}/{path}" for name, part in expected.items() for path in part.paths}
    again = find_splits(str(out), val_fraction=0.5, test_fraction=0.5 - 0.1)
    assert [part.class_counts() for _, part in again.items()] == [part.class_counts() for _, part in expected.items()]
    assert {row["path"] for row in rows(out / "split.csv")} == files(out)


@pytest.mark.parametrize("link", ["copy", "hardlink", "symlink"])
def test_files_are_copied_or_linked(tmp_path: Path, link: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_images(tmp_path / "data", {"a": 6, "b": 6})
    (root / "a/link.png").symlink_to("000.png")
    out = split(tmp_path, f"data.root={root}", f"link={link}")
    assert all((out / name).is_file() and (out / name).is_symlink() == (link == "symlink") for name in files(out))
    one = out / sorted(files(out))[0]
    original = root / one.relative_to(out).relative_to("train")
    assert one.read_bytes() == original.read_bytes()
    assert os.path.islink(one) == (link == "symlink")
    assert (os.stat(one).st_ino == os.stat(original).st_ino) == (link != "copy")
    assert f"alexlab train data.root={out}" in capsys.readouterr().out


def test_manifest_lists_the_files_in_place(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"a": 6, "b": 6})
    out = split(tmp_path, f"data.root={root}", "link=manifest")
    assert [path.name for path in out.iterdir()] == ["split.csv"]
    splits = find_splits(str(out / "split.csv"), val_fraction=0.2, test_fraction=0.0)
    expected = find_splits(str(root), val_fraction=0.2, test_fraction=0.0)
    for (_, one), (_, other) in zip(splits.items(), expected.items(), strict=True):
        result = {os.path.realpath(os.path.join(one.root, path)) for path in one.paths}
        assert result == {os.path.realpath(os.path.join(other.root, path)) for path in other.paths}


def test_classes_are_read_from_file_names(tmp_path: Path, flat: Path) -> None:
    out = split(tmp_path, f"data.root={flat}")
    counts = {name: len(list((out / name).rglob("*.png"))) for name in ("train/cat", "train/dog", "val/cat", "val/dog")}
    assert counts == {"train/cat": 24, "train/dog": 24, "val/cat": 6, "val/dog": 6}
    assert (out / "train/cat").is_dir()


def test_groups_stay_in_one_split(tmp_path: Path, flat: Path) -> None:
    out = split(tmp_path, f"data.root={flat}", "group='\\.(p\\d+)\\.'", "data.test_fraction=0.2")
    people = {name: {path.split(".")[1] for path in files(out / name)} for name in ("train", "val", "test")}
    assert all(people.values())
    assert not people["train"] & people["val"]
    assert not people["test"] & (people["val"] | people["train"])
    assert len(files(out)) == 60
    for path in flat.iterdir():  # people of one class each
        name, person, number, suffix = path.name.split(".")
        path.rename(flat / f"{name}.{person}{name}.{number}.{suffix}")
    (tmp_path / "out").rename(tmp_path / "first")
    out = split(tmp_path, f"data.root={flat}", "group='\\.(p[^.]+)\\.'")
    counts = {name: len(list((out / name).rglob("*.png"))) for name in ("train/cat", "train/dog", "val/cat", "val/dog")}
    assert counts == {"train/cat": 24, "train/dog": 24, "val/cat": 6, "val/dog": 6}
    assert not {path.split(".")[1] for path in files(out / "val")} & {
        path.split(".")[1] for path in files(out / "train")
    }
    with pytest.raises(DataError, match="group='person' must find the group in every path; it does not in cat"):
        find_unsplit(str(flat), labels=None, pattern="(?P<class>[^.]+)", group="person")


def test_classes_are_read_from_a_table(tmp_path: Path, flat: Path) -> None:
    table = tmp_path / "labels.csv"
    lines = [f"{name},{'animal' if number % 3 else 'beast'}" for number, name in enumerate(sorted(os.listdir(flat)))]
    table.write_text("\ufeffFile,Label\n" + "\n".join(lines) + "\n")
    out = split(tmp_path, f"data.root={flat}", f"labels={table}")
    assert {path.name for path in (out / "train").iterdir()} == {"animal", "beast"}
    assert len(files(out)) == 60
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="labels must be a CSV file with a column path or file or filename or image"):
        find_unsplit(str(flat), labels=str(table), pattern="", group=None)
    with pytest.raises(DataError, match="cannot read labels missing: No such file"):
        find_unsplit(str(flat), labels="missing", pattern="", group=None)


def test_a_dry_run_writes_nothing(tmp_path: Path, flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(tmp_path.rglob("*"))
    split(tmp_path, f"data.root={flat}", "dry_run=true")
    assert set(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().out
    assert "dry run: nothing was written" in printed
    assert "48" in printed


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["link=move"], ConfigError, "link must be one of copy, hardlink, symlink, manifest; got 'move'"),
        (["pattern='(['"], ConfigError, "pattern must be a regular expression"),
        (["pattern='cat'"], ConfigError, r"pattern must have a group for the class, \(\?P<class>...\); got 'cat'"),
        (
            ["pattern='(?P<class>cat)'"],
            DataError,
            "pattern='.*' must find the class in every file name; it does not in dog.p0.01.png",
        ),
        (["pattern='(?P<class>.)'", "data.val_fraction=1.0"], ConfigError, "must leave something to train on"),
        (["pattern='(?P<class>)'"], DataError, "a class must be a plain folder name; got '': it is empty"),
        (
            ["pattern='(?P<class>cat)?'"],
            DataError,
            "pattern='.*' must find the class in every file name; it does not in dog.p0.01.png",
        ),
        (["group='(9)?'"], DataError, "must find the group in every path; it does not in cat.p0.00.png"),
        (["data.root=null"], ConfigError, "data.root must be given: data.root=DIR"),
        (["action=null"], ConfigError, "action must be one of download, check, .*; got None"),
        (["action=check", "fix=delete"], ConfigError, "fix must be null or quarantine; got 'delete'"),
        (["action=restore"], ConfigError, "quarantine must be given"),
    ],
)
def test_invalid_arguments_are_rejected(
    tmp_path: Path, flat: Path, overrides: list[str], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        split(tmp_path, f"data.root={flat}", *overrides)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["action=shard", "group='p(.)'"], "group must not be given with action=shard, which ignores it: it is an option of action=split"),
        (["dataset=mnist", "link=symlink"], "link must not be given with action=download, .*: it is an option of action=split"),
        (["action=split", "data.pack.size=3"], "data.pack.size must not be given with action=split.* option of action=relabel, pack, shard"),
    ],
)  # fmt: skip
def test_options_of_other_actions_are_rejected(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(Run(config=plain(*overrides, name="prepare"), dir=tmp_path, overrides=overrides))


def test_unusable_folders_are_rejected(tmp_path: Path, flat: Path) -> None:
    divided = write_images(tmp_path / "divided", {"train/a": 3, "train/b": 3, "val/a": 1})
    with pytest.raises(DataError, match="is already split: it has train, val"):
        split(tmp_path, f"data.root={divided}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        split(tmp_path, f"data.root={tmp_path / 'empty'}")
    (write_images(tmp_path / "hollow", {"a": 3, "b": 3}) / "c").mkdir()
    with pytest.raises(DataError, match=r"every class folder must contain an image; .*hollow/c has none"):
        split(tmp_path, f"data.root={tmp_path / 'hollow'}")
    with pytest.raises(DataError, match="no such folder"):
        split(tmp_path, "data.root=missing")
    (tmp_path / "out").mkdir()
    split(tmp_path, f"data.root={flat}")
    with pytest.raises(ConfigError, match="out must be a new or empty folder"):
        split(tmp_path, f"data.root={flat}")


def test_files_listed_twice_are_rejected(tmp_path: Path, flat: Path) -> None:
    names = sorted(os.listdir(flat))
    table = tmp_path / "labels.csv"
    table.write_text("path,class\n" + "\n".join(f"{name},{'ab'[number % 2]}" for number, name in enumerate(names)) + f"\n./{names[0]},a\n")  # fmt: skip
    with pytest.raises(DataError, match=r"line 62: each file must be listed once; cat.p0.00.png is also in line 2"):
        split(tmp_path, f"data.root={flat}", f"labels={table}", "data.val_fraction=0.01")
    assert not (tmp_path / "out").exists()


def test_training_reads_the_packs_of_the_command(
    tmp_path: Path, train: Any, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    config = plain(
        "action=pack", f"data.root={images}", f"data.cache_dir={cache}", "data.image_size=64", name="prepare"
    )
    main(Run(config=config, dir=tmp_path))
    printed = capsys.readouterr().out
    assert "train: 24 images, 0.00 GB: " in printed
    assert "test: 7 images" in printed
    packs = sorted(path.name for path in cache.glob("*/pack*") if path.is_dir())
    assert packs == [f"pack-{split}-shorter-center-73x3" for split in ("test", "train", "val")]
    times = {path: path.stat().st_mtime_ns for path in cache.rglob("images.npy")}
    train("data.cache=packed")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("images.npy")} == times, "the packs are reused"


@pytest.mark.parametrize(
    "name", ["/tmp/x", "../../x", "..", "a/b", "a\\b", "", " ", "a\x1b[31m", ".cat", "@eaDir", "c" * 256]
)
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.scenario(name="tables")
def test_a_class_must_be_a_plain_folder_name(name: str, dry_run: bool, tmp_path: Path, flat: Path) -> None:
    table = tmp_path / "labels.csv"
    first, second, *_ = sorted(os.listdir(flat))
    table.write_text(f"path,class\n{first},cat\n{second},{name}\n")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"labels.csv, line 3: a class must be a plain folder name; got '") as caught:
        split(tmp_path, f"data.root={flat}", f"labels={table}", f"dry_run={dry_run}")
    assert "\x1b" not in str(caught.value)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.scenario(name="tables")
def test_a_pattern_must_give_plain_folder_names(tmp_path: Path) -> None:
    root = write_images(tmp_path / "flat", {".": 4})
    (root / "000.png").rename(root / "a\\b.png")
    with pytest.raises(
        DataError, match=r"file .*: a class must be a plain folder name; got 'a.*b': it contains a path separator"
    ):
        split(tmp_path, f"data.root={root}", "pattern='(?P<class>.*)\\.png'")


@pytest.mark.scenario(name="tables")
def test_classes_that_differ_only_in_case_are_rejected(tmp_path: Path, flat: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,class\n" + "\n".join(f"{name},{name[0]}" for name in os.listdir(flat)).replace(",d", ",C"))
    with pytest.raises(DataError, match="the names of classes must differ in more than case"):
        split(tmp_path, f"data.root={flat}", f"labels={table}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../secret.png", "a path must lead to a file inside {root}; got '../secret.png'"),
        ("{tmp}/secret.png", "a path must lead to a file inside {root}; got '{tmp}/secret.png'"),
        ("a/../../secret.png", "a path must lead to a file inside {root}; got 'a/../../secret.png'"),
        ("out/secret.png", "a path must lead to a file inside {root}; got 'out/secret.png'"),
        ("", "a path must lead to a file inside {root}; got ''"),
        (".", "no such file in {root}: ."),
        ("nowhere.png", "no such file in {root}: nowhere.png"),
        ("a", "no such file in {root}: a"),
        ("pipe.png", "no such file in {root}: pipe.png"),
        ("a/.hidden.png", "hidden files cannot be part of a dataset; got a/.hidden.png"),
        ("b/../a/000.png", "each file must be listed once; a/000.png is also in line 2"),
        ("{root}/a/000.png", "each file must be listed once; a/000.png is also in line 2"),
    ],
)
@pytest.mark.parametrize("link", ["copy", "manifest"])
@pytest.mark.scenario(name="tables")
def test_table_paths_must_be_files_inside_the_data_set(link: str, path: str, message: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "root", {"a": 4, "b": 4})
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "a/.hidden.png").write_bytes(b"x")
    (root / "out").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    table = tmp_path / "labels.csv"
    rows = [f"{name}/{number:03d}.png,{name}" for name in "ab" for number in range(4)]
    table.write_text("\n".join(["path,class", *rows, f"{path.format(root=root, tmp=tmp_path)},a"]))
    expected = re.escape(f"{table}, line 10: {message.format(root=root, tmp=tmp_path)}")
    with pytest.raises(DataError, match=expected):
        split(tmp_path, f"data.root={root}", f"labels={table}", f"link={link}")
    assert not (tmp_path / "out").exists()


def test_table_paths_are_normalized(tmp_path: Path) -> None:
    root = write_images(tmp_path / "root", {"a": 4, "b": 4})
    (root / "a/000.png").rename(root / "a/x..y.png")
    (root / "b/000.png").rename(root / "b/..z.png.png")
    paths = ["a/x..y.png", "./a/001.png", "b/../a/002.png", f"{root}/a/003.png", "b/001.png", "b/002.png", "b/003.png"]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["Path;Label", *(f"{path};{'cat' if path[-5] in 'y13' else 'dog'}" for path in paths)]))
    out = split(tmp_path, f"data.root={root}", f"labels={table}")
    result = {path.partition("/")[2] for path in files(out)}
    assert result == {"cat/a/x..y.png", "cat/a/001.png", "dog/a/002.png", "cat/a/003.png", "cat/b/001.png", "dog/b/002.png", "cat/b/003.png"}  # fmt: skip


def test_unwritable_out_is_reported(tmp_path: Path, flat: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"out must be a writable folder; got .*/file/out: File exists"):
        split(tmp_path, f"data.root={flat}", f"out={tmp_path}/file/out")


def test_default_out_is_next_to_the_current_folder(tmp_path: Path, flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flat)
    main(Run(config=plain("action=split", "data.root='.'", name="prepare"), dir=tmp_path))
    assert len(files(tmp_path / "flat_split")) == 60
