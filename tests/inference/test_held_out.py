"""Evaluations after the images of a run have changed: no training image is scored as held out."""

import csv
import logging
import shutil
from pathlib import Path

import pytest

from alexlab.config.data import data_config
from alexlab.data.audit.relabel import Decision, write_corrected
from alexlab.data.streaming.writer import write_shards
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
    other = write_images(tmp_path / "other", dict.fromkeys(("ant", "bee", "cat"), 20), seed=1)
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
    third = write_images(tmp_path / "third", dict.fromkeys(("ant", "bee", "cat"), 2), seed=2)
    assert len(split_of(tmp_path / "a", None, root=str(third))) == 6, "other images with the same relative paths"


@pytest.mark.parametrize(
    "overrides", [("data.val_fraction=0.3", "data.test_fraction=0.2"), ("data.folds=4", "data.fold=1")]
)
def test_moved_and_copied_images_are_those_of_the_run(
    folder: Path, tmp_path: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone.ckpt"
    monkeypatch.chdir(tmp_path)
    trains_on(Path("images"), tmp_path)(*overrides)
    shutil.copy(run / "checkpoints/best.ckpt", alone)
    held_out = recorded(run, "test" if "data.test_fraction=0.2" in overrides else "val")
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "run")  # data.root=images was relative
    for root in (folder, copy, tmp_path / "moved"):
        if root.name == "moved":
            folder.rename(root)
        for checkpoint in (run, alone):
            assert {*split_of(checkpoint, None, root=str(root))} == held_out, (root, checkpoint)
            assert {*split_of(checkpoint, "val", root=str(root))} == recorded(run, "val")
    for path in sorted(recorded(run, "val"))[:5]:
        (copy / path).unlink()
    assert {*split_of(run, "val", root=str(copy))} == {path for path in recorded(run, "val") if (copy / path).exists()}
    with pytest.raises(ConfigError, match="must not be evaluated on images that it was trained on"):
        split_of(alone, None, root=str(copy))
    assert len(split_of(alone, "all", root=str(copy))) == 55


def test_training_images_are_found_in_other_folders(tmp_path: Path) -> None:
    """A folder of the training split alone, and one in which the files are sorted differently."""
    root = write_images(
        tmp_path / "images", {f"{split}/{name}": 10 for split in ("train", "val") for name in ("ant", "bee", "cat")}
    )
    trains_on(root, tmp_path)()
    mixed = tmp_path / "mixed"
    for path in root.glob("*/*/*"):
        target = (
            mixed
            / ("val" if path.name > "005" else "train")
            / path.parent.name
            / f"{path.parent.parent.name}_{path.name}"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert len(split_of(tmp_path / "run", None, root=str(mixed))) == 30, "files with other names are not recognized"
    for path in [*mixed.glob("*/*/train_*")]:
        path.rename(path.with_name(path.name.removeprefix("train_")))
    for name, found in ((None, root / "train"), (None, mixed), ("val", mixed)):
        with pytest.raises(ConfigError, match=r"images such as .* are training images: set data.root=DIR to other"):
            split_of(tmp_path / "run", name, root=str(found))
    other = write_images(tmp_path / "other", dict.fromkeys(("ant", "bee", "cat"), 10), seed=1)
    assert len(split_of(tmp_path / "run", None, root=str(other))) == 30


@pytest.mark.parametrize("kind", ["manifest", "shards"])
def test_the_folder_of_a_manifest_or_of_shards_is_split_as_they_are(folder: Path, tmp_path: Path, kind: str) -> None:
    splits = data_config(
        plain(*TINY, f"data.root={folder}", "data.split_seed=3", "data.test_fraction=0.2")
    ).find_splits()
    if kind == "manifest":
        write_corrected(splits, [], tmp_path / "data.csv")
        trains_on(tmp_path / "data.csv", tmp_path)()
    else:
        write_shards(splits, str(tmp_path / "shards"), shard_bytes=10**6, cache_dir=tmp_path / "cache")
        streaming = ("data=streaming", f"data.url={tmp_path / 'shards'}", "data.root=null", "data.preview=0")
        trains_on(tmp_path, tmp_path)(*streaming, without=["data=folder"])
    run, alone = tmp_path / "run", tmp_path / "alone.ckpt"
    shutil.copy(run / "checkpoints/best.ckpt", alone)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for root in (folder, copy):
        for name in (None, "val"):
            assert {*split_of(run, name, root=str(root))} == {*dict(splits.items())[name or "test"].paths}
            with pytest.raises(ConfigError, match="must not be evaluated on images that it was trained on"):
                split_of(alone, name, root=str(root))


def test_the_validation_split_of_other_data_is_its_own(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat")
    root = write_images(tmp_path / "images", {f"{split}/{name}": 4 for split in ("train", "test") for name in names})
    trains_on(root, tmp_path)("data.val_split=test")
    counts = {f"{split}/{name}": count for split, count in (("train", 4), ("val", 3), ("test", 2)) for name in names}
    other = write_images(tmp_path / "other", counts, seed=1)
    assert len(split_of(tmp_path / "run", "val", root=str(other))) == 9
    assert len(split_of(tmp_path / "run", "test", root=str(other))) == 6
