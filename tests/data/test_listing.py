import os
import shutil
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alexlab.data import listing, listing_cache
from alexlab.data.audit.audit import audit_dataset
from alexlab.data.discovery import find_splits
from alexlab.data.file_types import HAS_HEIF
from alexlab.data.listing import list_images
from alexlab.data.listing_cache import folder_id
from alexlab.data.paths import PathArray
from alexlab.data.scan import scan_folder
from alexlab.errors import DataError
from alexlab.output.escape import shown
from support.images import write_images


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let listings of new folders be cached; the function resets modification times as `cp -a`, `rsync -t` and `touch` do."""

    def reset(root: Path) -> None:
        for folder, _, _ in os.walk(root):
            os.utime(folder, (1, 1))
            time.sleep(0.02)  # longer than a tick of the file system's clock

    monkeypatch.setattr(listing_cache, "SETTLE_S", 0.0)
    return reset


def test_a_path_array_is_a_sequence() -> None:
    names = ["a/1.png", "b/é 文.png", "c/\udcff.png", "d"]
    paths = PathArray.from_list(names)
    assert list(paths) == names
    assert paths == names
    assert (paths[-1], paths[1:3], len(paths)) == ("d", names[1:3], 4)
    assert list(paths.take(np.array([3, 0]))) == ["d", "a/1.png"]
    assert list(paths.take(np.array([3, 1, 0])).take(np.array([2, 1]))) == [names[0], names[1]]
    assert list(PathArray.from_list([])) == []
    with pytest.raises(IndexError):
        paths[4]


Settled = Callable[[Path], None]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("change", ["add", "remove", "replace", "add deep", "class", "other folder", "link", "none"])
def test_the_cache_replaces_the_walk_until_a_folder_changes(
    change: str, reset: bool, settled: Settled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, {"far/one": 2, "far/two": 3})
    (tmp_path / "far/now").symlink_to("one")
    root, cache = write_images(tmp_path / "data", {"a": 3, "b": 2, "b/deep": 2}), tmp_path / "cache"
    (root / "linked").symlink_to(tmp_path / "far/now")
    settled(root)
    first = list_images(str(root), cache_dir=cache)
    assert (cache / folder_id(str(root)) / "index/index.json").is_file()
    if change == "add":
        shutil.copy(root / "a/000.png", root / "a/new.png")
    elif change == "remove":
        (root / "b/001.png").unlink()
    elif change == "add deep":
        shutil.copy(root / "a/000.png", root / "b/deep/new.png")
    elif change == "replace":
        (root / "b/000.png").rename(root / "b/renamed.png")
    elif change == "class":
        write_images(root, {"c": 1})
    elif change == "other folder":
        shutil.copytree(root, tmp_path / "copy", symlinks=True)
        (tmp_path / "copy/a/001.png").unlink()
        root.rename(tmp_path / "old")
        (tmp_path / "copy").rename(root)
    elif change == "link":
        (tmp_path / "far/now").unlink()
        (tmp_path / "far/now").symlink_to("two")
    else:
        monkeypatch.setattr(listing, "_walk", None)
    if reset and change != "none":
        settled(root)
    again = list_images(str(root), cache_dir=cache)
    expected = first if change == "none" else list_images(str(root))
    assert list(again.paths) == list(expected.paths)
    assert again.labels.tolist() == expected.labels.tolist()
    assert again.classes == expected.classes
    assert (change == "none") == (list(again.paths) == list(first.paths))


def test_a_folder_that_has_just_changed_is_not_cached(tmp_path: Path) -> None:
    """It may change again within the same clock tick of the file system, regardless of its modification time."""
    root = write_images(tmp_path / "data", {"a": 3, "b": 2})
    for folder, _, _ in os.walk(root):
        os.utime(folder, (0, 0))
    list_images(str(root), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_file_system_with_one_time_for_all_folders_is_not_cached() -> None:
    assert listing_cache.detects_changes([[0, 5, 1], [0, 6, 2]], before_ns=10)
    assert not listing_cache.detects_changes([[0, 5, 1], [0, 5, 2]], before_ns=10)
    assert not listing_cache.detects_changes([[0, 5, 1], [0, 11, 2]], before_ns=10)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"version": 4}', b""])
@pytest.mark.parametrize("name", ["index.json", "paths.npy", "labels.npy"])
def test_a_corrupt_cache_is_replaced(name: str, content: bytes, settled: Settled, tmp_path: Path) -> None:
    root, cache = write_images(tmp_path / "data", {"a": 3, "b": 2}), tmp_path / "cache"
    settled(root)
    first = list_images(str(root), cache_dir=cache)
    (cache / folder_id(str(root)) / "index" / name).write_bytes(content)
    assert list(list_images(str(root), cache_dir=cache).paths) == list(first.paths)
    assert list(list_images(str(root), cache_dir=cache).paths) == list(first.paths)


def test_a_cache_with_the_wrong_number_of_labels_is_replaced(settled: Settled, tmp_path: Path) -> None:
    root, cache = write_images(tmp_path / "data", {"a": 3, "b": 2}), tmp_path / "cache"
    settled(root)
    list_images(str(root), cache_dir=cache)
    np.save(cache / folder_id(str(root)) / "index/labels.npy", np.zeros(3, np.int64))
    assert len(list_images(str(root), cache_dir=cache).labels) == 5


def test_a_read_only_cache_is_ignored(settled: Settled, tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"a": 3, "b": 2})
    settled(root)
    (tmp_path / "file").touch()
    assert len(list_images(str(root), cache_dir=tmp_path / "file").paths) == 5


def test_splits_are_the_same_with_and_without_a_cache(settled: Settled, tmp_path: Path) -> None:
    options = {"val_fraction": 0.3, "test_fraction": 0.2, "cache_dir": tmp_path / "cache"}
    root = write_images(tmp_path / "data", {"a": 9, "b": 9})
    settled(root)
    first, second = find_splits(str(root), **options), find_splits(str(root), **options)
    for (_, one), (_, other) in zip(first.items(), second.items(), strict=True):
        assert list(one.paths) == list(other.paths)
        assert one.labels.tolist() == other.labels.tolist()


def test_files_that_are_not_images_are_counted_by_extension(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    for name in ("a/x.gif", "a/y.GIF", "b/z.heic", "b/README"):
        (root / "train" / name).touch()
    notes = find_splits(str(root), val_fraction=0.2, test_fraction=0.0).notes
    heic = "" if HAS_HEIF else ", 1 .heic"
    hint = "" if HAS_HEIF else "; reading HEIC needs pillow-heif (pip install pillow-heif)"
    assert notes == (f"{root}/train: skipped files that are not images: 2 .gif{heic}, 1 without extension{hint}",)


HIDDEN = ("@eaDir/1.jpg", "#recycle", "#snapshot", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
    ".Trash-1000", ".thumbnails", ".ipynb_checkpoints", "__MACOSX", ".@__thumb")  # fmt: skip


@pytest.mark.parametrize("where", ["", "train", "train/a", "train/a/deep", "val/b"])
@pytest.mark.parametrize("folder", HIDDEN)
def test_hidden_folders_are_skipped_at_every_level_and_counted(where: str, folder: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"train/a/deep": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    write_images(root / where / folder, {"": 2})
    (root / where / "Thumbs.db").touch()
    splits = find_splits(str(root), val_fraction=0.2, test_fraction=0.0)
    assert (splits.classes, len(splits.train), len(splits.val)) == (["a", "b"], 4, 2)
    top = where.split("/")[0]
    counts = ", ".join(sorted([f"1 {folder.split('/')[0]}", "1 Thumbs.db"], key=lambda count: count[2:]))
    assert f"{root}{'/' * bool(top)}{top}: skipped hidden files and folders: {counts}" in splits.notes


@pytest.mark.parametrize("cached", [False, True])
def test_only_regular_files_are_listed_and_the_others_are_noted(cached: bool, settled: Settled, tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"a": 3, "b": 3})
    os.mkfifo(root / "a/pipe.jpg")
    (root / "a/null.png").symlink_to("/dev/null")
    (root / "b/ring.png").symlink_to("ring.png")
    (root / "b/gone.png").symlink_to("nowhere.png")
    (root / "b/to.png").symlink_to("000.png")
    settled(root)
    options = {"val_fraction": 0.2, "test_fraction": 0.0, "cache_dir": tmp_path / "cache"}
    splits = [find_splits(str(root), **options) for _ in range(1 + cached)][-1]
    names = {path for _, split in splits.items() for path in split.paths}
    assert len(names) == 9, "broken links are listed, so that reading them reports the reason"
    assert {"b/ring.png", "b/gone.png", "b/to.png"} <= names
    text = "skipped entries that are not regular files: a/null.png (a device), a/pipe.jpg (a FIFO)"
    assert f"{root}/: {text}" in splits.notes


@pytest.mark.parametrize("link", ["c", "a/more", "b/deep/more", "train/a/more", "val/b", "test"])
def test_links_that_cannot_be_resolved_are_errors_until_they_are_restored(
    link: str, settled: Settled, tmp_path: Path
) -> None:
    """The link may be that of a class, a split or a part of them, such as on a disk that is not mounted."""
    prefixes = ("train/", "val/") if link.startswith(("train", "val", "test")) else ("",)
    root = write_images(tmp_path / "data", {f"{prefix}{name}": 4 for prefix in prefixes for name in ("a", "b/deep")})
    if link == "val/b":
        shutil.rmtree(root / link)
    disk = write_images(tmp_path / "disk", {"c/1" if link == "test" else ".": 3})
    (root / link).symlink_to(disk / "c" if link == "test" else disk)
    options = {"val_fraction": 0.25, "test_fraction": 0.0, "cache_dir": tmp_path / "cache"}
    moved = disk.rename(tmp_path / "moved")
    settled(root)
    for _ in range(2):
        with pytest.raises(
            DataError, match=f"{link}.* is a link that cannot be resolved: restore its target or remove"
        ):
            find_splits(str(root), **options)
    result = audit_dataset(str(root))
    found = [(finding.code, finding.path) for finding in result.findings if "link that cannot" in finding.text]
    assert found == [("unclear_splits", ".") if link == "test" else ("broken_link", link)]
    moved.rename(disk)
    if link == "test":
        shutil.move(disk / "c/1", disk / "c/a")
    splits = find_splits(str(root), **options)
    assert any(path.startswith(f"{link}/") for _, split in splits.items() for path in split.paths)


def test_images_outside_the_class_folders_are_counted(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"a": 3, "b": 3, "": 2})
    notes = find_splits(str(root), val_fraction=0.2, test_fraction=0.0).notes
    assert f"{root}/: skipped 2 images outside the class folders" in notes


def test_confusable_class_names_are_rejected(tmp_path: Path) -> None:
    write_images(tmp_path / "case", {"Cat": 1, "cat": 1})
    with pytest.raises(DataError, match=r"must differ in more than case or Unicode form; .* has 'Cat' and 'cat'"):
        scan_folder(str(tmp_path / "case"))
    one, other = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_images(tmp_path / "form", {one: 1, other: 1})
    with pytest.raises(DataError, match="must differ in more than case or Unicode form"):
        scan_folder(str(tmp_path / "form"))
    write_images(tmp_path / "splits", {f"train/{one}": 2, "train/b": 2, f"val/{other}": 1, "val/b": 1})
    splits = find_splits(str(tmp_path / "splits"), val_fraction=0.2, test_fraction=0.0)
    assert splits.val.labels.tolist() == [0, 1], "equal names in another form are one class"


def test_file_names_may_be_any_bytes_and_class_names_must_be_utf_8(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"a": 1, "b": 1})
    os.rename(root / "a/000.png", os.fsencode(root) + b"/a/\xff\xfe.png")
    split = scan_folder(str(root))
    assert shown(split.paths[0]) == "a/\\xff\\xfe.png"
    assert os.path.exists(os.path.join(root, split.paths[0]))
    os.rename(root / "b", os.fsencode(root) + b"/\xff")
    with pytest.raises(DataError, match=r"names of class folders must be UTF-8; .* has \\xff"):
        scan_folder(str(root))


def test_a_folder_may_be_named_like_an_image(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"a/folder.png": 2, "b": 1})
    assert list(scan_folder(str(root)).paths) == ["a/folder.png/000.png", "a/folder.png/001.png", "b/000.png"]


def test_a_path_takes_at_most_150_bytes(tmp_path: Path) -> None:
    """In arrays that forked processes share, with its label."""
    paths = PathArray.from_list(
        [f"train/n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG" for number in range(20_000)]
    )
    labels = np.zeros(len(paths), np.int64)
    assert paths.block.nbytes + paths.ends.nbytes + labels.nbytes < 150 * len(paths)
    assert paths.take(np.arange(10)).block is paths.block
