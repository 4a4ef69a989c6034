"""Recognition of split folders: common names, and ambiguous layouts that are rejected."""

import re
from pathlib import Path

import pytest

from alexlab.data.audit.audit import audit_dataset
from alexlab.data.audit.unsplit import find_unsplit
from alexlab.data.discovery import find_splits
from alexlab.data.layout import find_layout, split_from_name
from alexlab.errors import DataError
from support.images import write_images

FRACTIONS = {"val_fraction": 0.25, "test_fraction": 0.0}


def tree(root: Path, *folders: str) -> str:
    """Make folders, with an image in those that end in `*`, and return the root."""
    for folder in folders:
        path = root / folder.removesuffix("*")
        path.mkdir(parents=True, exist_ok=True)
        if folder.endswith("*"):
            (path / "1.jpg").touch()
    return str(root)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train Train TRAIN training Training_Set trainset train-images TrainData train_split img_train train2017",
        ),
        ("val", "val Val valid VALID validation Validation_set validate dev devset eval evaluation val_images val2017"),
        ("test", "test Test TEST testing Testing test_set testset test-images TestData images.test"),
        (None, "trains trainee bus cat dog tester contest vale device evil bullet_train test_tube seg_train 训练集 0"),
    ],
)
def test_common_names_of_splits(split: str | None, names: str) -> None:
    assert {name: split_from_name(name) for name in names.split()} == dict.fromkeys(names.split(), split)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("train/a val/a test/a", {"train": "train", "val": "val", "test": "test"}),
        ("Training/a Testing/a", {"train": "Training", "test": "Testing"}),
        ("Train/a Val/a", {"train": "Train", "val": "Val"}),
        ("TRAIN/a TEST/a", {"train": "TRAIN", "test": "TEST"}),
        ("training_set/a test_set/a", {"train": "training_set", "test": "test_set"}),
        ("train_images/a val_images/a", {"train": "train_images", "val": "val_images"}),
        ("training/a validation/a", {"train": "training", "val": "validation"}),
        *((f"train/a {name}/a", {"train": "train", "val": name}) for name in ("Val", "dev", "validate", "eval")),
        *((f"train/a {name}/a", {"train": "train", "test": name}) for name in ("Test", "testing")),
        ("train/a val", {"train": "train", "val": "val"}),  # an empty folder is reported when it is scanned
        ("train/a test/a annotations/x unlabelled*", {"train": "train", "test": "test"}),
        ("train/a annotations/x", {"train": "train"}),
        ("test/a", {"test": "test"}),
        ("cat* dog*", {}),
        ("train* bus*", {}),  # vehicles
        ("bullet_train* test_tube* cat* dog*", {}),
        ("train/@eaDir/x train* tram*", {}),
        (".train/a cat* dog*", {}),
    ],
)
def test_split_folders_are_recognized(folders: str, expected: dict[str, str], tmp_path: Path) -> None:
    layout = find_layout(tree(tmp_path, *folders.split()))
    assert layout.ambiguity is None
    assert {split: layout.folder(split) for split in layout.folders} == expected
    standard = all(split == name for split, name in expected.items())
    pairs = ", ".join(f"{split}={name}" for split, name in expected.items())
    assert (f"the splits of {tmp_path} are {pairs}" in layout.notes) != standard


@pytest.mark.parametrize(
    ("folders", "reason", "overrides"),
    [
        ("train/a val/a validation/a", "val, validation are all named like val", "train=train data.splits.val=val"),
        ("train/a Training/a", "Training, train are all named like train", "train=Training"),
        (
            "Testing/cat Testing/dog cat* dog*",
            r"some folders are named like splits \(Testing\), others like classes \(cat, dog\)",
            "test=Testing",
        ),
        (
            "Testing* cat* dog*",
            r"some folders are named like splits \(Testing\), others like classes \(cat, dog\)",
            "test=Testing",
        ),
        (
            "train/a cat* dog*",
            r"some folders are named like splits \(train\), others like classes \(cat, dog\)",
            "train=train",
        ),
        (
            "valid* invalid*",
            r"some folders are named like splits \(valid\), others like classes \(invalid\)",
            "val=valid",
        ),
        (
            "train* test*",
            "train, test are named like splits but contain no class folders",
            "train=train data.splits.test=test",
        ),
        ("seg_train/a seg_test/a seg_pred*", "seg_test, seg_train look like splits", "train=seg_train"),
        ("trainA* trainB* testA* testB*", "testA, testB, trainA, trainB look like splits", "train=trainA"),
        (
            "entrenamiento/a entrenamiento/b prueba/a prueba/b",
            "entrenamiento, prueba contain folders of the same names, a, b, as splits do",
            "train=FOLDER",
        ),
        (
            "cat/test cat/train dog/test dog/train",
            "each of cat, dog contains test, train, but classes must be inside splits: train/cat",
            "train=FOLDER",
        ),
        ("train/a my_test/a", "my_test may be another split next to train", "train=train data.splits.test=my_test"),
    ],
)
def test_ambiguous_layouts_are_rejected_by_every_command(
    folders: str, reason: str, overrides: str, tmp_path: Path
) -> None:
    root = tree(tmp_path, *folders.split())
    message = (
        rf"folders of {re.escape(root)} are splits: {reason}. Name them, such as (data\S+ )?data.splits.{overrides}"
    )
    with pytest.raises(DataError, match=message):
        find_splits(root, **FRACTIONS)
    with pytest.raises(DataError, match=message):
        find_unsplit(root, labels=None, pattern="", group=None)
    problem = next(problem for problem in audit_dataset(root).findings if problem.code == "unclear_splits")
    assert re.search(message, problem.text)


def test_data_splits_names_the_folders(tmp_path: Path) -> None:
    root = str(write_images(tmp_path, {"A/a": 4, "A/b": 4, "deep/B/a": 2, "deep/B/b": 1, "val/a": 1}))
    splits = find_splits(root, **FRACTIONS, folders={"train": "A", "val": "deep/B/", "test": None})
    assert ([len(split) for _, split in splits.items()], splits.classes) == ([8, 3], ["a", "b"])
    assert f"not used in {root}: val" in splits.notes


def test_classes_may_be_named_like_splits(tmp_path: Path) -> None:
    root = str(write_images(tmp_path, {"train": 4, "test": 4, "bus/old": 4}))
    folders = {"train": ".", "val": None, "test": None}
    splits = find_splits(root, **FRACTIONS, folders=folders)
    assert (splits.classes, len(splits.train), len(splits.val)) == (["bus", "test", "train"], 9, 3)
    source = find_unsplit(root, labels=None, pattern="", group=None, folders=folders)
    assert set(source.classes) == {"bus", "test", "train"}
    assert not {problem.code for problem in audit_dataset(root, folders=folders).findings} & {
        "unclear_splits",
        "no_images",
    }


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"train": "Train"}, r"data.splits.train must be a folder inside .*, which has test, train; got 'Train'"),
        ({"train": "../x"}, r"data.splits.train must be a folder inside .*; got '../x'"),
        ({"train": "train", "val": "/"}, r"data.splits.val must be a folder inside .*; got '/'"),
        ({"train": "train", "test": "train/"}, "must not contain one another; train is train and test is train"),
        ({"train": ".", "test": "test"}, "must not contain one another; train is . and test is test"),
        (
            {"test": "test"},
            ".* must have a training split; found only test=test. Name it: data.splits.train=FOLDER",
        ),
    ],
)
def test_invalid_split_folders_are_rejected(folders: dict[str, str], message: str, tmp_path: Path) -> None:
    root = str(write_images(tmp_path / "root", {"train/a": 2, "train/b": 2, "test/a": 1}))
    write_images(tmp_path, {"x/a": 1})
    with pytest.raises(DataError, match=message):
        find_splits(root, **FRACTIONS, folders=folders)


def test_class_folders_with_the_same_subfolders_are_noted(tmp_path: Path) -> None:
    root = str(write_images(tmp_path, {f"{folder}/{name}": 3 for folder in "abcd" for name in ("2024", "2025")}))
    note = "every class folder contains the folders 2024, 2025, which are treated neither as splits nor as classes"
    assert [each for each in find_splits(root, **FRACTIONS).notes if each.startswith(note)]
    (tmp_path / "a/2024").rename(tmp_path / "a/other")
    assert not [each for each in find_splits(root, **FRACTIONS).notes if each.startswith("every class folder")]


def test_few_class_folders_with_the_same_subfolders_are_classes_if_data_splits_says_so(tmp_path: Path) -> None:
    root = str(write_images(tmp_path, {f"{folder}/{name}": 3 for folder in "ab" for name in ("2024", "2025")}))
    assert find_splits(root, **FRACTIONS, folders={"train": "."}).classes == ["a", "b"]


def test_a_missing_folder_is_reported_with_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=re.escape(f"got 'small': no such folder (looked for {tmp_path}/small)")):
        find_splits("small", **FRACTIONS)
