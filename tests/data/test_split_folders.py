"""Which folders are taken for splits: many spellings, and what is refused because it could mean several things."""

import re
from pathlib import Path

import pytest

from alexlab.data.audit.audit import audit_dataset
from alexlab.data.audit.split import find_unsplit
from alexlab.data.layout import find_layout, split_from_name
from alexlab.data.splits import find_splits
from alexlab.errors import DataError
from support.images import write_images

FRACTIONS = {"val_fraction": 0.25, "test_fraction": 0.0}


def tree(root: Path, *folders: str) -> str:
    """Makes empty folders, and an image in those that end in `*`."""
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
def test_names_of_splits(split: str | None, names: str) -> None:
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
        ("train/a val", {"train": "train", "val": "val"}),  # empty: scanning it tells
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
def test_splits_are_recognised(folders: str, expected: dict[str, str], tmp_path: Path) -> None:
    layout = find_layout(tree(tmp_path, *folders.split()))
    assert layout.ambiguity is None
    assert {split: layout.folder(split) for split in layout.folders} == expected
    standard = all(split == name for split, name in expected.items())
    pairs = ", ".join(f"{split}={name}" for split, name in expected.items())
    assert (f"the splits of {tmp_path} are {pairs}" in layout.notes) != standard


@pytest.mark.parametrize(
    ("folders", "reason", "typed"),
    [
        ("train/a val/a validation/a", "val, validation are all named like val", "train=train data.splits.val=val"),
        ("train/a Training/a", "Training, train are all named like train", "train=Training"),
        ("Testing/cat Testing/dog cat* dog*", "Testing is named like a split, cat, dog like a class", "test=Testing"),
        ("Testing* cat* dog*", "Testing is named like a split, cat, dog like a class", "test=Testing"),
        ("train/a cat* dog*", "train is named like a split, cat, dog like a class", "train=train"),
        ("valid* invalid*", "valid is named like a split, invalid like a class", "val=valid"),
        (
            "train* test*",
            "train, test are named like splits but hold no class folders",
            "train=train data.splits.test=test",
        ),
        ("seg_train/a seg_test/a seg_pred*", "seg_test, seg_train look like splits", "train=seg_train"),
        ("trainA* trainB* testA* testB*", "testA, testB, trainA, trainB look like splits", "train=trainA"),
        (
            "entrenamiento/a entrenamiento/b prueba/a prueba/b",
            "entrenamiento, prueba hold folders of the same names, a, b, as splits do",
            "train=FOLDER",
        ),
        (
            "cat/test cat/train dog/test dog/train",
            "each of cat, dog holds test, train, but classes must lie inside splits: train/cat",
            "train=FOLDER",
        ),
        ("train/a my_test/a", "my_test may be another split beside train", "train=train data.splits.test=my_test"),
    ],
)
def test_what_is_unclear_is_refused_everywhere(folders: str, reason: str, typed: str, tmp_path: Path) -> None:
    root = tree(tmp_path, *folders.split())
    words = rf"folders of {re.escape(root)} are splits: {reason}. Name them, such as (data\S+ )?data.splits.{typed}"
    with pytest.raises(DataError, match=words):
        find_splits(root, **FRACTIONS)
    with pytest.raises(DataError, match=words):
        find_unsplit(root, labels=None, pattern="", group=None)
    problem = next(problem for problem in audit_dataset(root).findings if problem.code == "unclear_splits")
    assert re.search(words, problem.text)


def test_splits_that_are_named(tmp_path: Path) -> None:
    root = str(write_images(tmp_path, {"A/a": 4, "A/b": 4, "deep/B/a": 2, "deep/B/b": 1, "val/a": 1}))
    splits = find_splits(root, **FRACTIONS, folders={"train": "A", "val": "deep/B/", "test": None})
    assert ([len(split) for _, split in splits.items()], splits.classes) == ([8, 3], ["a", "b"])
    assert f"not used in {root}: val" in splits.notes


def test_classes_that_are_named_like_splits(tmp_path: Path) -> None:
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
    ("named", "words"),
    [
        ({"train": "Train"}, r"data.splits.train must be a folder inside .*, which has test, train; got 'Train'"),
        ({"train": "../x"}, r"data.splits.train must be a folder inside .*; got '../x'"),
        ({"train": "train", "val": "/"}, r"data.splits.val must be a folder inside .*; got '/'"),
        ({"train": "train", "test": "train/"}, "must not hold one another; train is train and test is train"),
        ({"train": ".", "test": "test"}, "must not hold one another; train is . and test is test"),
        (
            {"test": "test"},
            "there must be a folder to train on in .*, which has only test=test: data.splits.train=FOLDER",
        ),
    ],
)
def test_names_that_cannot_be_splits(named: dict[str, str], words: str, tmp_path: Path) -> None:
    root = str(write_images(tmp_path / "root", {"train/a": 2, "train/b": 2, "test/a": 1}))
    write_images(tmp_path, {"x/a": 1})
    with pytest.raises(DataError, match=words):
        find_splits(root, **FRACTIONS, folders=named)


def test_many_class_folders_that_all_hold_the_same_folders_are_noted(tmp_path: Path) -> None:
    root = str(write_images(tmp_path, {f"{folder}/{name}": 3 for folder in "abcd" for name in ("2024", "2025")}))
    words = "each class folder holds 2024, 2025, which are taken neither for splits nor for classes"
    assert [note for note in find_splits(root, **FRACTIONS).notes if note.startswith(words)]
    (tmp_path / "a/2024").rename(tmp_path / "a/other")
    assert not [note for note in find_splits(root, **FRACTIONS).notes if note.startswith("each class folder")]


def test_few_class_folders_that_hold_the_same_folders_are_classes_if_that_is_said(tmp_path: Path) -> None:
    root = str(write_images(tmp_path, {f"{folder}/{name}": 3 for folder in "ab" for name in ("2024", "2025")}))
    assert find_splits(root, **FRACTIONS, folders={"train": "."}).classes == ["a", "b"]


def test_a_missing_folder_is_told_with_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=re.escape(f"got 'small': there is no such folder (looked for {tmp_path}/small)")
    ):
        find_splits("small", **FRACTIONS)
