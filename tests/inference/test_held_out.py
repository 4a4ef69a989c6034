"""Evaluations after the images of a run have changed: no training image is scored as held out."""

import csv
import logging
import shutil
from pathlib import Path

import pytest

from alexlab.config.data import data_config
from alexlab.data.audit.relabel import Decision, write_corrected
from alexlab.errors import ConfigError, DataError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.inference.held_out import held_out_split
from alexlab.tasks.evaluate import data_settings
from support.images import write_images
from support.runs import TINY, plain, trains_on


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders without splits, with 20 images of each of 3 classes."""
    return write_images(tmp_path / "images", dict.fromkeys(("ant", "bee", "cat"), 20))


def split_of(run: Path, name: str | None, **data: object) -> list[str]:
    """Return the paths of the images of an evaluation."""
    model = load_checkpoint(str(run), device="cpu")
    node = plain("ckpt=x", name="evaluate")["data"] | data
    settings, from_run = data_settings(model, node)
    return list(held_out_split(model, settings, name, from_run=from_run)[1].paths)


def recorded(run: Path, name: str) -> set[str]:
    with (run / "split.csv").open() as file:
        return {row["path"] for row in csv.DictReader(file) if row["split"] == name}


@pytest.mark.parametrize(
    "overrides", [("data.val_fraction=0.3", "data.test_fraction=0.2"), ("data.folds=4", "data.fold=1")]
)
def test_deleted_images_move_no_training_image_into_the_validation(
    folder: Path, tmp_path: Path, overrides: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run, moved = tmp_path / "run", tmp_path / "moved.ckpt"
    trains_on(folder, tmp_path)(*overrides)
    shutil.copy(run / "checkpoints/best.ckpt", moved)
    val = recorded(run, "val")
    assert {*split_of(run, "val")} == {*split_of(moved, "val")} == val
    assert "by the split that the run recorded" not in caplog.text
    gone = sorted(val)[:5]
    for path in gone:
        (folder / path).unlink()
    (folder / "ant/new.png").write_bytes((folder / sorted(val)[-1]).read_bytes())
    assert {*split_of(run, "val")} == val - {*gone}
    assert f"val: {len(val) - 5} images, by the split that the run recorded" in caplog.text
    if "data.test_fraction=0.2" in overrides:
        assert {*split_of(run, None)} == recorded(run, "test"), "the test split is the default"
    assert len(split_of(run, "train")) > len(val), "is no held-out split"
    message = "must be those of the run, so that split=val has none that a network was trained on; they have changed"
    with pytest.raises(DataError, match=message):
        split_of(moved, "val")


def test_a_test_split_that_was_added_later_is_evaluated(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", {f"train/{name}": 10 for name in ("ant", "bee", "cat")})
    trains_on(root, tmp_path)()
    write_images(root, {f"test/{name}": 2 for name in ("ant", "bee", "cat")})
    assert len(split_of(tmp_path / "run", None)) == 6
    assert {*split_of(tmp_path / "run", "val")} == recorded(tmp_path / "run", "val")


def test_folds_stay_the_same_when_labels_are_corrected(folder: Path, tmp_path: Path) -> None:
    """The folds of corrected labels would be others: they are stratified by class."""
    corrected, train = tmp_path / "corrected.csv", trains_on(folder, tmp_path)
    runs = [tmp_path / f"fold{number}" for number in range(3)]
    for number, run in enumerate(runs):
        train("data.folds=3", f"data.fold={number}", run_dir=run)
    splits = data_config(plain(*TINY, f"data.root={folder}")).find_undivided_splits()
    changed = [path for path in [*splits.train.paths, *splits.val.paths] if path.startswith("ant/")][:9]
    decisions = [Decision("", path, "ant", "bee", 0.1, "accept") for path in changed[:6]]
    decisions += [Decision("", path, "ant", "bee", 0.1, "remove") for path in changed[6:]]
    write_corrected(splits, decisions, corrected)
    by_run = [{*split_of(run, "val", root=str(corrected))} for run in runs]
    assert by_run == [recorded(run, "val") - {*changed[6:]} for run in runs]
    assert sum(map(len, by_run)) == 57 == len(set.union(*by_run))
    model = load_checkpoint(str(runs[0]), device="cpu")
    settings, from_run = data_settings(model, plain("ckpt=x", name="evaluate")["data"] | {"root": str(corrected)})
    _, split = held_out_split(model, settings, "val", from_run=from_run)
    labels = {path: split.classes[label] for path, label in zip(split.paths, split.labels.tolist(), strict=True)}
    assert all(labels[path] == "bee" for path in changed[:6] if path in labels)


def test_the_images_of_any_member_are_left_out(folder: Path, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", dict.fromkeys(("ant", "bee", "cat"), 20))
    for name, root in (("a", other), ("b", folder)):
        trains_on(root, tmp_path)(run_dir=tmp_path / name)
    a, b = (str(tmp_path / name) for name in "ab")
    node = plain("ckpt=x", name="evaluate")["data"] | {"root": str(folder)}
    model = load_checkpoint([a, b], device="cpu")
    settings, from_run = data_settings(model, node)
    assert {*held_out_split(model, settings, "val", from_run=from_run)[1].paths} == recorded(tmp_path / "b", "val")
    with pytest.raises(ConfigError, match=r"\d+ of 60 images in .* are training images: set split=val"):
        held_out_split(model, settings, None, from_run=from_run)
    assert len(held_out_split(model, settings, "all", from_run=from_run)[1]) == 60
    model = load_checkpoint([b, a], device="cpu")
    settings, from_run = data_settings(model, node)
    with pytest.raises(ConfigError, match=r"split the data differently \(data.root: "):
        held_out_split(model, settings, None, from_run=from_run)
    third = write_images(tmp_path / "third", dict.fromkeys(("ant", "bee", "cat"), 2))
    assert len(split_of(tmp_path / "a", None, root=str(third))) == 6, "other images with the same relative paths"
