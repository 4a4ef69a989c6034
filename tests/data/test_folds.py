"""Folds of a cross-validation, fractions of the training split, and groups."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from alexlab.config.data import find_splits
from alexlab.data.fingerprint import describe_images
from alexlab.data.folds import select_fold
from alexlab.data.hash_split import assign_folds
from alexlab.data.image_file import DEFAULT_DECODING
from alexlab.data.own_dataset import dataset_splits
from alexlab.data.splits import Split, Splits
from alexlab.errors import ConfigError, DataError
from support.images import write_images
from support.runs import TINY, plain

FLAT = {"a": 11, "b": 23, "c": 7}
SPLIT = {"train/a": 9, "train/b": 12, "val/a": 4, "val/b": 5, "test/a": 3, "test/b": 3}


def splits(root: Path, *overrides: str) -> Splits:
    return find_splits(plain(*TINY, f"data.root={root}", f"data.cache_dir={root.parent / 'cache'}", *overrides))


def files(split: Split | None) -> list[str]:
    assert split is not None
    return list(split.paths)


@pytest.mark.parametrize("counts", [FLAT, SPLIT])
def test_every_image_validates_in_exactly_one_fold(tmp_path: Path, counts: dict[str, int]) -> None:
    root = write_images(tmp_path / "images", counts)
    before = splits(root)
    folds = [splits(root, "data.folds=4", f"data.fold={number}") for number in range(4)]
    whole = sorted([*before.train.paths, *before.val.paths])
    assert sorted(path for fold in folds for path in fold.val.paths) == whole
    for fold in folds:
        assert sorted([*fold.train.paths, *fold.val.paths]) == whole
        for split in (fold.train, fold.val):
            names = [Path(path).parts[-2] for path in split.paths]
            assert [split.classes[label] for label in split.labels.tolist()] == names
            assert Path(split.file_path(0)).is_file()
        if before.test is not None:
            assert files(fold.test) == files(before.test)
    theirs = [len(rows) for _, rows in StratifiedKFold(4).split(whole, [Path(path).parts[-2] for path in whole])]
    assert sorted(len(fold.val) for fold in folds) == sorted(theirs)
    for label in range(len(before.classes)):
        sizes = [fold.val.class_counts()[label] for fold in folds]
        assert max(sizes) - min(sizes) <= 1
    assert any(
        f"fold 0 of 4 (0 to 3) validates: {len(folds[0].val)} of {len(whole)} images" in n for n in folds[0].notes
    )


def test_folds_depend_on_paths_and_seed_only() -> None:
    paths = [f"{name}/{number}.png" for name in "ab" for number in range(30)]
    labels = np.repeat([0, 1], 30)
    folds = assign_folds(paths, labels, ["a", "b"], 5, 0)
    order = np.random.default_rng(1).permutation(60)
    assert (assign_folds([paths[row] for row in order], labels[order], ["a", "b"], 5, 0) == folds[order]).all()
    assert (assign_folds(paths, labels, ["a", "b"], 5, 1) != folds).any()


@pytest.mark.parametrize("counts", [FLAT, SPLIT])
def test_a_smaller_fraction_is_a_part_of_a_larger_one(tmp_path: Path, counts: dict[str, int]) -> None:
    root = write_images(tmp_path / "images", counts)
    whole = splits(root)
    parts = [splits(root, f"data.fraction={fraction}") for fraction in (0.01, 0.25, 0.5, 0.99)]
    kept = [set(part.train.paths) for part in parts]
    assert kept[0] < kept[1] < kept[2] <= kept[3] <= set(whole.train.paths)
    assert parts[0].train.class_counts() == [1] * len(whole.classes)
    half = [max(1, round(0.5 * count)) for count in whole.train.class_counts()]
    assert parts[2].train.class_counts() == half
    assert all(files(part.val) == files(whole.val) for part in parts)
    assert f"data.fraction=0.25: {len(kept[1])} of {len(whole.train)} training images" in parts[1].notes


def test_folds_of_other_images_have_packs_of_their_own(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", {"train/a": 9, "train/b": 12, "val/a": 4, "val/b": 5})
    listings = [
        splits(root, "data.folds=2", f"data.fold={fold}", f"data.test_fraction={fraction}").train.listing
        for fold, fraction in ((0, 0), (1, 0), (0, 0.2))
    ]
    first, same, other = (listing.folder for listing in listings if listing is not None)
    assert first == same != other


def test_groups_are_not_divided(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for person in range(12):
        write_images(root, {f"{'ab'[person % 2]}/person{person}": 3})
    group = "data.group='(person\\d+)'"

    def people(split: Split) -> set[str]:
        return {Path(path).parts[-2] for path in split.paths}

    found = [splits(root, group), *(splits(root, group, "data.folds=3", f"data.fold={n}") for n in range(3))]
    for each in found:
        assert not people(each.train) & people(each.val)
        assert len(each.train) + len(each.val) == 36
    assert [len(fold.val) for fold in found[1:]] == [12, 12, 12]
    few = splits(root, group, "data.fraction=0.3")
    counts = Counter(Path(path).parts[-2] for path in few.train.paths)
    assert set(counts.values()) == {3}


def test_groups_of_several_classes_are_spread_as_evenly_as_possible() -> None:
    """Every group is in one fold, and each fold has between 15 and 25 % of each class."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 30, (40, 3))
    groups = [str(number) for number, counts in enumerate(sizes) for _ in range(counts.sum())]
    labels = np.concatenate([np.repeat(np.arange(3), counts) for counts in sizes])
    paths = [str(row) for row in range(len(labels))]
    folds = assign_folds(paths, labels, ["a", "b", "c"], 5, 0, groups)
    assert all(len({*folds[np.array(groups) == name]}) == 1 for name in {*groups})
    shares = np.array(
        [np.bincount(folds[labels == label], minlength=5) / (labels == label).sum() for label in range(3)]
    )
    assert abs(shares - 0.2).max() < 0.05
    assert (assign_folds(paths, labels, ["a", "b", "c"], 5, 0, groups) == folds).all()
    with pytest.raises(DataError, match=r"data\.folds must be at most the number of groups, 40; got 41"):
        assign_folds(paths, labels, ["a", "b", "c"], 41, 0, groups)


def test_a_fraction_of_groups_keeps_every_class(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for place in range(8):
        write_images(
            root,
            {f"{split}/{name}/place{place}": 2 for split in ("train", "val") for name in ("ab" if place else "abc")},
        )
    with pytest.raises(
        DataError, match=r"every class needs a training image; data\.fraction=0\.1 leaves no group of c"
    ):
        splits(root, "data.group='(place\\d+)'", "data.fraction=0.1", "data.split_seed=3")


def test_the_fingerprint_of_each_fold_differs(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", SPLIT)
    found = {describe_images(splits(root, "data.folds=3", f"data.fold={n}"))["fingerprint"] for n in range(3)}
    assert len(found) == 3


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.fold=1"], "data.folds must be the number of folds with data.fold=1; got null"),
        (["data.folds=5"], "data.fold must be the fold that validates, 0 to 4; got null (all of them: "
                           "-m 'data.fold=range(5)')"),
        (["data.folds=5", "data.fold=5"], "data.fold must be the fold that validates, 0 to 4; got 5"),
        (["data.folds=1", "data.fold=0"], "data.folds must be null or at least 2; got 1"),
        (["data.folds=5", "data.fold=0", "data.val_split=test"], "data.val_split must be val with data.folds; got 'test'"),
        (["data.folds=50", "data.fold=49"], "data.folds must be at most the number of images or groups; fold 49 of 50 has no"),
        (["data.fraction=0"], "data.fraction must be above 0 and at most 1; got 0"),
        (["data.fraction=1.5"], "data.fraction must be above 0 and at most 1; got 1.5"),
        (["data.group='('", "data.folds=2", "data.fold=0"], "data.group must be a regular expression; got '('"),
        (["data.group=x\\d", "data.folds=2", "data.fold=0"], "must find the group in every path; it does not in train/a/"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(images: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        splits(images, *overrides)
    assert sentence.replace("train/a/", "train/") in str(error.value)


def test_groups_without_a_use_are_a_note(images: Path) -> None:
    """So that a sweep over fractions of the training split may end with 1."""
    notes = splits(images, "data.group=a").notes
    assert any(note.startswith("data.group is not used without") for note in notes)


def test_a_class_of_one_image_cannot_be_in_two_folds(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", {"train/a": 5, "train/b": 1, "val/a": 2})
    with pytest.raises(DataError, match="class b must have at least 2 images to be in two folds; it has 1"):
        splits(root, "data.folds=3", "data.fold=0")


class Numbers:
    """Twenty grey images of two classes."""

    classes = ("even", "odd")

    def __init__(self, split: str) -> None:
        self.targets = np.arange(20) % 2

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return np.full((70, 70), index, np.uint8), int(self.targets[index])


def test_folds_of_a_dataset_class() -> None:

    def make(split: str) -> Numbers | None:
        return Numbers(split) if split == "train" else None

    whole = dataset_splits(partial(make), val_fraction=0.2, split_seed=0)
    values = []
    for number in range(4):
        fold = select_fold(whole, number, 4, seed=0, group=None)
        pixels = [int(fold.val.load(row, DEFAULT_DECODING)[0, 0, 0]) for row in range(len(fold.val))]
        assert [value % 2 for value in pixels] == fold.val.labels.tolist()
        values += pixels
    assert sorted(values) == list(range(20))
    both = dataset_splits(partial(Numbers), val_fraction=0.2, split_seed=0)
    with pytest.raises(ConfigError, match=r"a data\.dataset without a split val"):
        select_fold(both, 0, 4, seed=0, group=None)
