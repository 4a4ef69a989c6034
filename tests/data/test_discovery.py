import hashlib
import re
import shutil
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from alexlab.data.cache.pack import PackConfig, pack_path
from alexlab.data.discovery import find_splits
from alexlab.data.image_file import Decoding
from alexlab.data.scan import scan_folder
from alexlab.errors import DataError, ImageError
from support.images import write_images
from support.runs import rows

FRACTIONS = {"val_fraction": 0.25, "test_fraction": 0.0}


def test_a_clean_folder_gives_the_same_files_as_torchvision(tmp_path: Path) -> None:
    write_images(tmp_path, {"b": 3, "a": 2, "a/b": 1, "a/b-c": 1, "a/bc/d": 1, "C": 2})
    (tmp_path / "b" / "UPPER.PNG").write_bytes((tmp_path / "b" / "000.png").read_bytes())
    theirs, ours = ImageFolder(str(tmp_path)), scan_folder(str(tmp_path))
    assert list(ours.classes) == theirs.classes
    assert [(ours.file_path(row), int(ours.labels[row])) for row in range(len(ours))] == theirs.samples
    assert len(ours) == 11


def test_split_folders_are_used_unchanged(images: Path) -> None:
    splits = find_splits(str(images), **FRACTIONS)
    assert splits.classes == ["ant", "bee", "cat"]
    assert [len(split) for _, split in splits.items()] == [24, 11, 7]
    assert splits.test is not None
    assert splits.test.class_counts() == [3, 2, 2]
    assert not splits.auto_split


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_validation_folder_are_recognized(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, {"train/a": 2, "train/b": 2, f"{name}/a": 1, f"{name}/b": 1})
    assert len(find_splits(str(tmp_path), **FRACTIONS).val) == 2


def test_class_folders_are_split_by_a_hash_of_the_paths(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 8, "b": 20})
    splits = find_splits(str(tmp_path), val_fraction=0.25, test_fraction=0.1)
    assert [split.class_counts() for _, split in splits.items()] == [[5, 13], [2, 5], [1, 2]]
    paths = sorted(path for _, split in splits.items() for path in split.paths)
    assert paths == sorted(scan_folder(str(tmp_path)).paths)
    assert "28 images split by a hash of their paths: train 18, val 7, test 3" in splits.notes[0]
    # The split depends on the paths only: these are the files on every machine.
    assert splits.val.paths[:2] == ["a/002.png", "a/007.png"]
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert find_splits(str(moved), val_fraction=0.25, test_fraction=0.1).val.paths == splits.val.paths
    assert find_splits(str(moved), val_fraction=0.25, test_fraction=0.1, split_seed=1).val.paths != splits.val.paths


def test_a_new_file_moves_no_more_than_one_other(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 40, "b": 40})
    before = set(find_splits(str(tmp_path), **FRACTIONS).val.paths)
    (tmp_path / "a" / "new.png").write_bytes((tmp_path / "a" / "000.png").read_bytes())
    after = set(find_splits(str(tmp_path), **FRACTIONS).val.paths)
    assert len(before ^ after) <= 2


def test_a_missing_val_folder_is_split_from_train(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 8, "train/b": 8, "test/a": 3, "test/b": 3})
    splits = find_splits(str(tmp_path), **FRACTIONS)
    assert [split.class_counts() for _, split in splits.items()] == [[6, 6], [2, 2], [3, 3]]
    assert splits.auto_split
    assert "4 of 16 training images became the validation split" in splits.notes[0]
    with_test = find_splits(str(tmp_path), val_fraction=0.25, test_fraction=0.25)
    assert list(with_test.test.paths) == list(splits.test.paths), "the test folder is used unchanged"
    on_test = find_splits(str(tmp_path), **FRACTIONS, val_split="test")
    assert (len(on_test.train), on_test.val.class_counts(), on_test.test) == (16, [3, 3], None)
    assert "validating on the test split" in on_test.notes[0]


@pytest.mark.parametrize("val", [True, False])
def test_a_missing_test_folder_is_split_from_train_if_a_fraction_is_given(tmp_path: Path, val: bool) -> None:
    write_images(tmp_path, {"train/a": 8, "train/b": 8} | ({"val/a": 3, "val/b": 3} if val else {}))
    splits = find_splits(str(tmp_path), val_fraction=0.25, test_fraction=0.125)
    counts = [split.class_counts() for _, split in splits.items()]
    assert counts == ([[7, 7], [3, 3], [1, 1]] if val else [[5, 5], [2, 2], [1, 1]])
    assert len({path for _, split in splits.items() for path in split.paths}) == (22 if val else 16)
    assert splits.auto_split
    assert splits.notes[-1] == "no test folder: 2 of 16 training images became the test split"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path, {"train": 4, "tram": 4})
    assert find_splits(str(tmp_path), **FRACTIONS).classes == ["train", "tram"]


def test_all_splits_share_the_classes_of_train(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 2, "train/b": 2, "train/c": 2, "val/a": 1, "val/c": 1})
    splits = find_splits(str(tmp_path), **FRACTIONS)
    assert list(splits.val.labels) == [0, 2]
    assert splits.notes == ("the val split has no image of b",)


def test_classes_without_validation_images_are_noted_for_groups_and_manifests(tmp_path: Path) -> None:
    """Groups with images of several classes need not have all of them in val."""
    pairs = ["ab", "ab", "ab", "ab", "bc"]
    root = write_images(tmp_path, {f"{name}/g{number}": 2 for number, pair in enumerate(pairs) for name in pair})
    options = {"val_fraction": 0.2, "test_fraction": 0.0, "group": "g[0-9]"}
    splits = find_splits(str(root), **options, split_seed=0)
    assert splits.notes[-1] == "the val split has no image of c"
    splits.write_manifest(root / "split.csv")
    assert find_splits(str(root / "split.csv"), **FRACTIONS).notes[-1] == "the val split has no image of c"
    (train_only := root / "set/train").mkdir(parents=True)
    for name in "abc":
        (root / name).rename(train_only / name)
    assert find_splits(str(root / "set"), **options).notes[-1] == "the val split has no image of c"


def test_hidden_files_are_skipped(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 2, "b": 2, ".ipynb_checkpoints": 1, "__MACOSX": 1, "a/.thumbs": 1})
    for name in (".DS_Store", "Thumbs.db", "a/._000.png", "a/notes.txt", "a/.000.png"):
        (tmp_path / name).write_bytes(b"x")
    split = scan_folder(str(tmp_path))
    assert (split.classes, split.class_counts()) == (["a", "b"], [2, 2])


def test_links_are_followed_and_loops_are_rejected(tmp_path: Path) -> None:
    write_images(tmp_path / "far", {"x": 2})
    write_images(tmp_path / "root", {"a": 1, "b": 1})
    (tmp_path / "root/a/more").symlink_to(tmp_path / "far/x")
    assert scan_folder(str(tmp_path / "root")).class_counts() == [3, 1]
    (tmp_path / "root/b/loop").symlink_to(tmp_path / "root/b")
    with pytest.raises(DataError, match=r"b/loop is a link back to a folder that was already read"):
        scan_folder(str(tmp_path / "root"))
    (tmp_path / "root/b/loop").unlink()
    (tmp_path / "root/b/others").symlink_to(tmp_path / "root/a")
    with pytest.raises(DataError, match=r"is the same folder as .*a, of another class"):
        scan_folder(str(tmp_path / "root"))


@pytest.mark.parametrize("link", ["val", "val/a"])
def test_splits_that_share_a_folder_are_noted(tmp_path: Path, link: str) -> None:
    write_images(tmp_path / "data/train", {"a": 3, "b": 3})
    write_images(tmp_path / "data/val", {"a": 1, "b": 1})
    assert not any("same folder" in note for note in find_splits(str(tmp_path / "data"), **FRACTIONS).notes)
    shutil.rmtree(tmp_path / "data" / link)
    (tmp_path / "data" / link).symlink_to(tmp_path / "data/train" / link.partition("/")[2])
    notes = find_splits(str(tmp_path / "data"), **FRACTIONS).notes
    expected = f"val has images of train: train{link[3:]} and {link} are the same folder, through a link"
    assert expected in notes


def test_files_of_other_types_explain_an_empty_class(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 2})
    (tmp_path / "b").mkdir()
    (tmp_path / "b/IMG_1.HEIC").write_bytes(b"x")
    with pytest.raises(DataError, match=r"b has none \(fill or remove it\); skipped files that are not images: .*heic"):
        scan_folder(str(tmp_path))


def test_images_of_a_manifest_without_a_hash_are_noted(tmp_path: Path) -> None:
    """An empty cell must not turn the check of the other files off."""
    write_images(tmp_path, {"a": 2, "b": 2})
    lines = []
    for name in ("a/000.png", "b/000.png", "a/001.png", "b/001.png"):
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() if name != "a/000.png" else ""
        lines.append(f"{name},{digest},{name[0]},{'train' if name.endswith('0.png') else 'val'}")
    (tmp_path / "list.csv").write_text("\n".join(["path,sha256,class,split", *lines]))
    splits = find_splits(str(tmp_path / "list.csv"), **FRACTIONS)
    assert any("1 image without a SHA-256 may have any content, such as a/000.png" in note for note in splits.notes)
    for name in ("a/000.png", "b/000.png"):
        (tmp_path / name).write_bytes((tmp_path / "a/001.png").read_bytes())
    assert splits.train.load(0, Decoding()).shape[2] == 3
    with pytest.raises(ImageError, match="its SHA-256 differs from the one in the manifest"):
        splits.train.load(1, Decoding())


def test_long_names_of_splits_fit_into_the_names_of_caches(tmp_path: Path) -> None:
    names = [f"{20 * '标签'}_{number}.csv" for number in (1, 2)]
    paths = [pack_path(tmp_path, str(tmp_path), name, PackConfig(size=64), 3) for name in names]
    assert paths[0] != paths[1] and all(len(path.name) < 200 for path in paths)


def test_the_manifest_lists_every_image(tmp_path: Path) -> None:
    write_images(tmp_path / "data", {"a": 4, "b c": 4})
    splits = find_splits(str(tmp_path / "data"), **FRACTIONS)
    splits.write_manifest(tmp_path / "split.csv")
    found = rows(tmp_path / "split.csv")
    assert list(found[0]) == ["path", "size", "sha256", "class", "split", "width", "height", "mode"]
    assert {row["path"] for row in found if row["split"] == "val"} == set(splits.val.paths)
    assert {row["class"] for row in found} == {"a", "b c"}


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        (None, {}, "data.root must be a folder of images, one folder per class; got '{root}': no such folder"),
        ({}, {}, "{root}/ must contain one folder of images per class; it has 0 images and no folder"),
        ({".": 2}, {}, "it has 2 images and no folder"),
        ({"a": 0, "b": 0}, {}, "{root}/ contains no images: looked for .jpg, .jpeg, .png"),
        ({"a": 3, "b": 0}, {}, "every class folder must contain an image; {root}/b has none (fill or remove it)"),
        ({"a": 3}, {}, "a classifier needs at least 2 classes; {root}/ has one, a"),
        (
            {"train/a": 1, "train/b": 1, "val/c": 1},
            {},
            "every class must be in the training split; {root}/val has c, the training split has a, b",
        ),
        ({"train/a": 1, "train/b": 1, "val": 0}, {}, "{root}/val must contain one folder of images per class"),
        (
            {"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1},
            {},
            "it must be clear which folders of {root} are splits: val, valid are all named like val. Name them, such as "
            "data.splits.train=train data.splits.val=val",
        ),
        ({"a": 1, "b": 4}, {}, "class a must have at least 2 images to be split into train and val; it has 1"),
        (
            {"a": 4, "b": 4},
            {"val_split": "test"},
            "data.val_split=test needs a test split; {root}/test does not exist",
        ),
        ({"a": 4, "b": 4}, {"val_split": "dev"}, "data.val_split must be val or test; got 'dev'"),
        ({"a": 4, "b": 4}, {"val_fraction": 0}, "data.val_fraction must be positive"),
        (
            {"a": 4, "b": 4},
            {"test_fraction": 0.8},
            "and their sum less than 1; got 0.25 and 0.8",
        ),
    ],
)
def test_invalid_datasets_are_rejected(tmp_path: Path, counts: dict | None, options: dict, message: str) -> None:
    root = tmp_path / "root"
    if counts is not None:
        root.mkdir()
        write_images(root, counts)
    with pytest.raises(DataError, match=re.escape(message.format(root=root))):
        find_splits(str(root), **(FRACTIONS | options))


def test_a_file_as_root_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="it is a file"):
        find_splits(str(tmp_path / "file"), **FRACTIONS)
