"""`prepare.py action=labels` reads the folds of a sweep and writes a page; `action=relabel` writes a manifest with its decisions."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexlab.data.audit import label_report
from alexlab.data.discovery import find_splits
from alexlab.data.folds import select_fold
from alexlab.errors import AlexlabError, ConfigError
from alexlab.records.image_scores import SettingScores, setting_scores
from alexlab.records.results import read_runs
from alexlab.records.run import Run
from alexlab.records.run_groups import group_seeds
from alexlab.records.saved_predictions import SavedPredictions
from alexlab.tasks.prepare import main
from support.browser import evaluate_script
from support.images import write_images
from support.runs import TINY, plain, rows, trains_on, write_record

FOLDS = 3
WRONG = {"a/003.png": "b", "b, 2/005.png": "a"}  # files in the wrong folder, and their true classes


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("labels") / "images", {"a": 30, "b, 2": 30}, size=40)


@pytest.fixture
def sweep(tmp_path: Path, images: Path) -> Path:
    """Runs of three folds and two seeds whose nets recognize every image but are wrong about a few."""
    config = plain(
        *TINY, f"data.root={images}", f"data.cache_dir={tmp_path / 'cache'}", f"data.folds={FOLDS}", "data.fold=0"
    )
    random = np.random.default_rng(0)
    for seed in (1, 2):
        for number in range(FOLDS):
            fold = select_fold(
                find_splits(str(images), val_fraction=0.2, test_fraction=0.0), number, FOLDS, seed=0, group=None
            )
            val = fold.val
            classes = [*val.classes]
            true = [
                1 - label if path in WRONG else label
                for path, label in zip(val.paths, val.labels.tolist(), strict=True)
            ]
            probs = random.uniform(0.01, 0.2, (len(val), 2))
            probs[np.arange(len(val)), true] = 1 - probs[np.arange(len(val)), 1 - np.array(true)]
            folder = write_record(tmp_path / "sweep" / f"{number}_{seed}", config={**config, "data": {**config["data"], "fold": number}}, seed=seed)  # fmt: skip
            order = random.permutation(len(val))
            top = np.argsort(-probs, 1)
            kept = SavedPredictions(
                np.array([*val.paths])[order], np.array(classes), val.labels[order], top[order],
                np.take_along_axis(probs, top, 1)[order].astype(np.float32),
                probs[np.arange(len(val)), val.labels][order].astype(np.float32), probs[order].astype(np.float16),
            )  # fmt: skip
            kept.write(folder, "val")
    return tmp_path / "sweep"


def prepare(folder: Path, *overrides: str) -> Path:
    folder.mkdir()
    config = plain(*overrides, f"data.cache_dir={folder.parent / 'cache'}", name="prepare")
    main(Run(config=config, dir=folder))
    return folder


def test_label_errors_are_found_decided_and_corrected(
    sweep: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepare(tmp_path / "out", "action=labels", f"ckpt={sweep}")
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 60 images have a suspicious label" in printed
    assert "action=relabel" in printed
    found = rows(out / "labels.csv")
    assert [*found[0]] == ["path", "class", "proposed", "quality", "proposed_prob", "decision"]
    assert {row["path"]: row["proposed"][0] for row in found} == WRONG
    assert float(found[0]["quality"]) <= float(found[1]["quality"]) < 0.2
    page = (out / "labels.html").read_text()
    assert page.count('src="data:image/') == 2
    assert "Out-of-fold top-1" in page
    assert len(rows(out / "manifest.csv")) == 60

    # The page: the first image is accepted with a key, the second is removed with a button and a wrong decision is undone.
    script = """
      const [first, second] = document.querySelectorAll('#suspects > figure');
      const press = key => document.activeElement.dispatchEvent(new window.KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
      first.focus(); press('r'); press('u');
      const undone = [document.activeElement === first, document.getElementById('count').value];
      press('a');
      const moved = document.activeElement === second;
      press('r'); press('u'); press('u'); press('u');
      const again = window.eval('decisionsCsv()');
      first.focus(); press('a');
      // Another tab has decided the second image since.
      window.eval("localStorage.setItem(storageKey, JSON.stringify({...decisions, 1: 'reject'}))");
      first.querySelector('[data-decision=accept]').click();
      const merged = window.eval('decisions[1]');
      first.querySelector('[data-decision=accept]').click();
      second.querySelector('[data-decision=remove]').click();
      const count = document.getElementById('count').value;
      document.getElementById('undecided').click();
      return [undone, moved, again, merged, count, first.hidden, first.dataset.chosen, window.eval('decisionsCsv()')];"""
    undone, moved, again, merged, count, hidden, chosen, text = evaluate_script(out / "labels.html", script)
    assert (undone, moved, merged) == ([True, "0 of 2 decided"], True, "reject")
    assert again.splitlines() == (out / "labels.csv").read_text().splitlines(), "undecided images are listed too"
    assert (count, hidden, chosen) == ("2 of 2 decided", True, "accept")
    (tmp_path / "decisions.csv").write_text(text, newline="")
    corrected = tmp_path / "new/corrected.csv"
    arguments = (f"data.root={out / 'manifest.csv'}", f"decisions={tmp_path / 'decisions.csv'}", f"out={corrected}")
    prepare(tmp_path / "relabel", "action=relabel", *arguments)
    assert "corrected 1 label, removed 1 image, rejected 0 proposals, 0 undecided" in capsys.readouterr().out
    before, after = ({row["path"]: row for row in rows(path)} for path in (out / "manifest.csv", corrected))
    accepted, removed = (row["path"] for row in found)
    assert before.keys() - after.keys() == {removed}
    assert after[accepted]["class"] == found[0]["proposed"]
    assert {path for path in after if after[path] != before[path]} == {accepted}
    with pytest.raises(ConfigError, match=r"out must be a folder; .*corrected.csv cannot be one"):
        prepare(tmp_path / "inside", "action=relabel", *arguments[:2], f"out={corrected / 'x.csv'}")
    with pytest.raises(ConfigError, match="out must be a new file"):
        prepare(tmp_path / "again", "action=relabel", *arguments)

    # Without the page: everything in labels.csv is accepted.
    everything = ("action=relabel", f"data.root={out / 'manifest.csv'}", f"decisions={out / 'labels.csv'}")
    accepting = prepare(tmp_path / "accepting", *everything, "accept=1")
    assert {
        row["path"] for row in rows(accepting / "corrected.csv") if row["class"] != before[row["path"]]["class"]
    } == {*WRONG}
    for value in ("2", "all"):
        with pytest.raises(ConfigError, match="accept must be null or a quality above 0 and at most 1"):
            prepare(tmp_path / value, *everything, f"accept={value}")
    with pytest.raises(ConfigError, match="decisions must be given"):
        prepare(tmp_path / "none", "action=relabel", f"data.root={out / 'manifest.csv'}")


def test_a_page_has_a_limited_number_of_images(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_report, "MAX_IMAGES", 1)
    out = prepare(tmp_path / "out", "action=labels", f"ckpt={sweep}")
    page = (out / "labels.html").read_text()
    assert page.count("<figure") == 1
    assert "1 more image is in labels.csv" in page
    text = evaluate_script(out / "labels.html", "return window.eval('decisionsCsv()');")
    assert text.splitlines() == (out / "labels.csv").read_text().splitlines(), "with the images that are not shown"


@pytest.mark.slow
def test_a_run_with_a_corrected_manifest_is_compared_on_the_same_images(tmp_path: Path, images: Path) -> None:
    splits = find_splits(str(images), val_fraction=0.2, test_fraction=0.0)
    (tmp_path / "decisions.csv").write_text(
        f'path,proposed,decision\n{splits.train.paths[0]},"b, 2",accept\n{splits.val.paths[0]},"b, 2",accept\n'
    )
    scores: list[SettingScores | None] = []
    for name, options in {"old": None, "train": ["train_only=true"], "both": []}.items():
        root = images
        if options is not None:
            arguments = (f"data.root={images}", f"decisions={tmp_path / 'decisions.csv'}", *options)
            root = prepare(tmp_path / f"{name}_manifest", "action=relabel", *arguments) / "corrected.csv"
        trains_on(root, tmp_path)(run_dir=tmp_path / name)
        (group,) = group_seeds(read_runs([tmp_path / name]), [])
        scores.append(setting_scores(group))
    old, new, relabelled = scores
    assert old is not None
    assert new is not None
    assert relabelled is not None
    assert old.has_images_of(new)
    assert old.paths.tolist() == relabelled.paths.tolist()
    assert (old.labels != relabelled.labels).sum() == 1


def without_fold(sweep: Path, images: Path) -> None:
    for seed in (1, 2):
        shutil.rmtree(sweep / f"1_{seed}")


def unfinished(sweep: Path, images: Path) -> None:
    without_fold(sweep, images)
    change(sweep, images, "1_1", status="failed")


def other_seed(sweep: Path, images: Path) -> None:
    change(sweep, images, "1_1", split_seed=4)


def no_folds(sweep: Path, images: Path) -> None:
    change(sweep, images, "1_1", folds=None, fold=None)


def change(sweep: Path, images: Path, name: str, *, status: str = "finished", **values: Any) -> None:
    config = plain(
        *TINY, f"data.root={images}", f"data.cache_dir={sweep.parent / 'cache'}", f"data.folds={FOLDS}", "data.fold=1"
    )
    write_record(sweep / name, status=status, config={**config, "data": {**config["data"], **values}}, seed=1)


def other_settings(sweep: Path, images: Path) -> None:
    change(sweep, images, "1_1", fraction=0.5)


def no_predictions(sweep: Path, images: Path) -> None:
    shutil.rmtree(sweep / "0_1" / "predictions")


def other_images(sweep: Path, images: Path) -> None:
    shutil.copyfile(sweep / "1_1/predictions/val.npz", sweep / "0_1/predictions/val.npz")


def repeated_images(sweep: Path, images: Path) -> None:
    for seed in (1, 2):
        shutil.copyfile(sweep / f"1_{seed}/predictions/val.npz", sweep / f"0_{seed}/predictions/val.npz")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_fold, "each of the 3 folds must have a finished run; {sweep} has none of fold 1"),
        (unfinished, "each of the 3 folds must have a finished run; {sweep} has none of fold 1 (1_1 is failed)"),
        (other_seed, "the runs of a cross-validation must have the same data.split_seed; {sweep}/0_1 has 0, {sweep}/1_1 has 4"),
        (no_folds, "ckpt must be the folder of a cross-validation (-m 'data.fold=range(5)' data.folds=5); the run {sweep}/1_1 has no folds"),
        (other_settings, "the runs of a cross-validation must differ only in fold and seed; those of {sweep} differ in data.fraction: name the runs of one setting by their folders, such as ckpt='{sweep}/*model-alexnet*'"),
        (no_predictions, "the run {sweep}/0_1 kept no predictions of its validation images; train it again"),
        (other_images, "runs of the same fold must validate on the same images; {sweep}/0_1 and {sweep}/0_2 do not"),
        (repeated_images, "each image must be in one fold; a/000.png is in several of {sweep}"),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_sentence(sweep: Path, images: Path, tmp_path: Path, damage: Any, message: str) -> None:
    damage(sweep, images)
    with pytest.raises(ConfigError) as caught:
        prepare(tmp_path / "out", "action=labels", f"ckpt={sweep}")
    text = str(caught.value)
    if damage is repeated_images:
        text, message = text.partition(" is in ")[2], message.partition(" is in ")[2]
    assert text == message.format(sweep=sweep)


def test_the_runs_of_one_setting_are_chosen_by_their_folders(
    sweep: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(sweep, images, "1_1", fraction=0.5)
    prepare(tmp_path / "out", "action=labels", f"ckpt='{sweep}/*_2'")
    assert "2 of 60 images have a suspicious label" in " ".join(capsys.readouterr().out.split())


def test_a_changed_dataset_is_one_sentence(sweep: Path, images: Path, tmp_path: Path) -> None:
    def message(name: str, root: Path) -> str:
        with pytest.raises(AlexlabError) as caught:
            prepare(tmp_path / name, "action=labels", f"ckpt={sweep}", f"data.root={root}")
        return str(caught.value)

    with pytest.raises(ConfigError, match="ckpt must be given"):
        prepare(tmp_path / "none", "action=labels")
    root = shutil.copytree(images, tmp_path / "copy")
    (root / "a/000.png").rename(root / "a/new.png")
    assert message("gone", root) == (
        f"{root} must have the images of the runs; it lacks 1, such as a/000.png: set data.root=DIR if the dataset was moved"
    )
    shutil.copyfile(root / "a/new.png", root / "a/000.png")
    assert message("added", root) == (
        f"each train and val image of {root} must be predicted in one fold; 1 were not, such as a/new.png"
    )
    (root / "a/new.png").unlink()
    table = [(path.relative_to(root), path.parent.name) for path in sorted(root.rglob("*.png"))]
    lines = [
        f'"{path}","{name if number else "b, 2"}",{"val" if number % 9 == 4 else "train"}'
        for number, (path, name) in enumerate(table)
    ]
    (root / "changed.csv").write_text("\n".join(["path,class,split", *lines]))
    assert message("changed", root / "changed.csv") == (
        "the labels must be those that the runs were trained with; a/000.png was a and is b, 2"
    )
