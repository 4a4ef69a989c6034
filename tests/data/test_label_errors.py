"""Confident learning finds planted label errors, and a corrected manifest changes nothing but the decided labels."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexlab.data.audit.label_errors import class_rows, find_label_errors
from alexlab.data.audit.relabel import accept_below, in_train, read_decisions, write_corrected
from alexlab.data.discovery import find_splits
from alexlab.data.folds import select_fold
from alexlab.errors import ConfigError, DataError
from support.images import write_images
from support.label_noise import flip_labels, recall_and_precision, split_rows

FRACTIONS: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.0}


def noisy(num_images: int, num_classes: int, *, strength: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return true classes, labels of which 5 % are wrong, and probabilities of nets that know the true class."""
    random = np.random.default_rng(3)
    true = np.arange(num_images) % num_classes
    logits = random.normal(size=(num_images, num_classes)) + strength * np.eye(num_classes)[true]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = true.copy()
    flipped = random.choice(num_images, num_images // 20, replace=False)
    labels[flipped] = (labels[flipped] + random.integers(1, num_classes, len(flipped))) % num_classes
    return true, labels, probs


@pytest.mark.parametrize(("num_classes", "strength", "recall", "precision"), [(2, 6, 0.95, 0.95), (10, 5, 0.8, 0.9)])
def test_planted_errors_are_found(num_classes: int, strength: float, recall: float, precision: float) -> None:
    true, labels, probs = noisy(2000, num_classes, strength=strength)
    errors = find_label_errors(labels, probs)
    found = recall_and_precision({*map(str, np.flatnonzero(labels != true))}, [*map(str, errors.suspects)])
    assert found[0] >= recall
    assert found[1] >= precision
    assert (np.diff(errors.quality[errors.suspects]) >= 0).all()
    np.testing.assert_allclose(errors.quality, probs[np.arange(2000), labels])
    assert (errors.proposed[errors.suspects] != labels[errors.suspects]).all()
    assert errors.joint.sum(1).tolist() == np.bincount(labels).tolist()
    assert 0.5 * 100 < errors.num_wrong.sum() < 2 * 100
    table = class_rows(errors, labels, [f"c{n}" for n in range(num_classes)])
    assert sum(row[2] for row in table) == len(errors.suspects)


def test_the_suspects_are_those_of_cleanlab_called_directly() -> None:
    from cleanlab.filter import find_label_issues

    _, labels, probs = noisy(600, 4, strength=2.5)
    mask = find_label_issues(labels, probs, n_jobs=1)
    assert sorted(find_label_errors(labels, probs).suspects.tolist()) == np.flatnonzero(mask).tolist()


def test_the_joint_is_the_one_computed_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    first = np.array([0.9, 0.8, 0.85, 0.8, 0.05, 0.1, 0.2, 0.15, 0.2, 0.9])
    errors = find_label_errors(labels, np.stack([first, 1 - first], 1))
    # Thresholds: the mean of class 0 over its images is 0.68, that of class 1 is 0.69. Images 0 to 3 and 9 are confidently 0.
    assert errors.joint.tolist() == [[4, 1], [1, 4]]
    assert errors.pairs() == [(0, 1, 1), (1, 0, 1)]
    assert errors.suspects.tolist() == [4, 9]


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(
        ConfigError,
        match=r"^action=labels needs the package cleanlab: run pip install -e '.\[labels\]' in the repository$",
    ):
        find_label_errors(np.array([0]), np.array([[1.0, 0.0]]))


def test_noise_is_planted_in_a_fraction_of_train_and_val(tmp_path: Path) -> None:
    splits = find_splits(
        str(write_images(tmp_path, {"train/a": 30, "train/b": 30, "val/a": 20, "val/b": 20, "test/a": 9}, size=8)),
        **FRACTIONS,
    )
    before = split_rows(splits)
    after = flip_labels(before)
    assert after == flip_labels(before)
    changed = [row for row, old in zip(after, before, strict=True) if row != old]
    assert len(changed) == 5
    assert {row.split for row in changed} <= {"train", "val"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", {"a": 10, "b": 10, "c, d": 10}, size=8)


def decisions_file(folder: Path, *lines: str) -> Path:
    path = folder / "decisions.csv"
    path.write_text("\n".join(["path,class,proposed,quality,decision", *lines]) + "\n")
    return path


def test_a_table_without_decisions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("path,class\na/000.png,a\n")
    with pytest.raises(
        DataError, match=r"with a column .* and a column proposed and a column decision; .*labels\.csv has"
    ):
        read_decisions(path)


def test_a_corrected_manifest_changes_only_decided_labels(tmp_path: Path, images: Path) -> None:
    splits = find_splits(str(images), **FRACTIONS)
    removed, val = splits.train.paths[0], splits.val.paths[0]
    path = decisions_file(
        tmp_path,
        f"{removed},a,b,0.01,remove",
        f"{val},a,b,0.02,Accept",
        '"c, d/003.png","c, d",a,0.03,reject',
        "b/004.png,b,a,0.04,",
        'b/005.png,b,a,"0,30",',
        "b/caf\ufffd.png,b,a,0.50,",
    )
    decisions = read_decisions(path)
    write_corrected(splits, accept_below(decisions, 0.1), tmp_path / "corrected.csv")
    after = find_splits(str(tmp_path / "corrected.csv"), **FRACTIONS)
    for (name, old), (_, new) in zip(splits.items(), after.items(), strict=True):
        assert [*new.paths] == [path for path in old.paths if path != removed], name
        assert [new.file_path(n) for n in range(len(new))] == [str(images / path) for path in new.paths]
    labels = {
        path: split.classes[label]
        for _, split in after.items()
        for path, label in zip(split.paths, split.labels, strict=True)
    }
    expected = {path: Path(path).parent.name for path in labels} | {val: "b", "b/004.png": "a"}
    assert labels == expected
    write_corrected(splits, in_train(decisions, splits), tmp_path / "train.csv")
    train_only = find_splits(str(tmp_path / "train.csv"), **FRACTIONS)
    assert train_only.val.labels.tolist() == splits.val.labels.tolist()
    assert [*train_only.train.paths] == [*splits.train.paths][1:]
    # Paths are those of the folder, so that runs are matched image by image and a manifest without decisions has the same folds.
    write_corrected(splits, [], tmp_path / "same.csv")
    same = find_splits(str(tmp_path / "same.csv"), **FRACTIONS)
    for number in range(3):
        folds = [select_fold(one, number, 3, seed=0, group=None) for one in (splits, same)]
        assert sorted(folds[0].val.paths) == sorted(folds[1].val.paths)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a/000.png,a,b,0.1,yes"], "decisions.csv, line 2: decision must be accept, reject, remove or empty; got 'yes'"),
        (["a/000.png,a,b,low,accept"], "decisions.csv, line 2: quality must be a number; got 'low'"),
        (["a/000.png,a,b,0.1,", "a/000.png,a,b,0.1,"], "decisions.csv, line 3: each image must be listed once; a/000.png is listed before"),
        (["a/000.png,a,b,0.1,", "a/x.png,a,b,0.1,accept"], "decisions.csv, line 3: the path must be that of an image of {root}; got a/x.png"),
        (["a/000.png,a,e,0.1,accept"], "decisions.csv, line 2: proposed must be one of a, b, c, d; got 'e'"),
        (["a/000.png,b,c,0.1,accept"], "decisions.csv, line 2: the class must be that of the image in the dataset, a; got b"),
        (["a/000.png,a,b,,"], "decisions.csv, line 2: accept=NUMBER needs a number in the column quality"),
    ],
)  # fmt: skip
def test_an_invalid_decision_is_one_sentence_with_its_line(
    tmp_path: Path, images: Path, lines: list[str], message: str
) -> None:
    path = decisions_file(tmp_path, *lines)
    with pytest.raises(DataError) as caught:
        write_corrected(
            find_splits(str(images), **FRACTIONS), accept_below(read_decisions(path), 0.5), tmp_path / "out.csv"
        )
    assert str(caught.value) == f"{tmp_path}/{message.format(root=images)}"
    assert not (tmp_path / "out.csv").exists()


def test_every_class_keeps_a_training_image(tmp_path: Path) -> None:
    splits = find_splits(
        str(write_images(tmp_path / "x", {"train/a": 3, "train/b": 1, "val/b": 1}, size=8)), **FRACTIONS
    )
    path = decisions_file(tmp_path, "train/b/000.png,b,a,0.1,accept")
    with pytest.raises(DataError, match="every class must keep a training image; the decisions leave none of b"):
        write_corrected(splits, read_decisions(path), tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_the_images_of_a_manifest_have_one_root(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,class,split,root\nx.png,a,train,one\ny.png,b,val,two\n")
    with pytest.raises(DataError, match=r"the root of all images must be the same; \S*m\.csv has 'one', 'two'"):
        find_splits(str(tmp_path / "m.csv"), **FRACTIONS)
