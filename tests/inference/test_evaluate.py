import csv
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.functional import crop, hflip

from alexlab.config import build
from alexlab.data.config import DataConfig
from alexlab.data.dataset import to_tensor
from alexlab.data.decode import decode
from alexlab.data.splits import Split
from alexlab.errors import ConfigError, DataError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.inference.metrics import (
    calibration,
    class_report,
    compute_metrics,
    confused_pairs,
    confusion_matrix,
    wilson_interval,
)
from alexlab.inference.predictions import Predictions, predict_split, select_split, split_loader
from alexlab.runs.record import RunRecord
from alexlab.tasks.evaluate import run
from support.images import write_images
from support.runs import plain, rows

Evaluate = Callable[..., Path]


@pytest.fixture
def evaluate(trained_run: Path, tmp_path: Path) -> Evaluate:
    """Evaluates the tiny net with overrides and gives the folder of the results."""

    def call(*words: str, ckpt: Path = trained_run, folder: str = "out") -> Path:
        out = tmp_path / folder
        out.mkdir()
        run(plain(f"ckpt='{ckpt}'", "data.num_workers=0", *words, name="evaluate"), run_dir=out, choices={})
        return out

    return call


def test_the_scores_are_those_of_the_training(
    evaluate: Evaluate, trained_run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = RunRecord(trained_run).read()["best"]
    out = evaluate("split=val")
    found = json.loads((out / "scores.json").read_text())
    assert (found["top1"], found["top5"], found["images"]) == (best["top1"], best["top5"], best["count"])
    assert found["loss"] == pytest.approx(best["loss"], rel=1e-5)
    assert found["top1_error"] == pytest.approx(1 - best["top1"])
    assert {path.name for path in out.iterdir()} == {
        "scores.json", "classes.csv", "confusion.csv", "confusion.png", "calibration.png", "predictions.csv", "evaluation.html",
    }  # fmt: skip
    said = rows(out / "predictions.csv")
    assert [row["path"] for row in said] == sorted(str(path) for path in (images / "val").rglob("*.png"))
    assert sum(row["class1"] == row["label"] for row in said) == round(best["top1"] * len(said))
    assert all(float(row["prob1"]) >= float(row["prob2"]) >= float(row["prob3"]) for row in said)
    printed = capsys.readouterr().out
    assert "top-3" in printed and "95 % interval" in printed and "recall" in printed
    # The confusion matrix, counted from the predictions.
    with (out / "confusion.csv").open() as file:
        header, *matrix = list(csv.reader(file))
    for name, *counts in matrix:
        for answer, count in zip(header[1:], counts, strict=True):
            assert int(count) == sum(row["label"] == name and row["class1"] == answer for row in said)
    page = (out / "evaluation.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_the_test_split_is_the_default_and_workers_change_nothing(evaluate: Evaluate) -> None:
    first = json.loads((evaluate() / "scores.json").read_text())
    assert (first["split"], first["images"]) == ("test", 7)
    second = json.loads((evaluate("data.num_workers=2", "data.batch_size=2", folder="two") / "scores.json").read_text())
    for name in ("top1", "top5", "loss"):
        assert second[name] == pytest.approx(first[name], rel=1e-5)


def test_a_checkpoint_of_two_devices(evaluate: Evaluate, train: Callable[..., float | None], tmp_path: Path) -> None:
    train("trainer.devices=2", "trainer.max_epochs=2", run_dir=tmp_path / "two", isolated=True)
    found = json.loads((evaluate("split=val", ckpt=tmp_path / "two") / "scores.json").read_text())
    best = RunRecord(tmp_path / "two").read()["best"]
    assert (found["top1"], found["images"]) == (best["top1"], 11)
    assert found["loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_ten_crops_are_ten_single_crops(trained_run: Path, images: Path) -> None:
    """By hand: the shorter side to 73 = 64 / 0.875, its central square, corners and centre of 64, and their mirror images."""
    trained = load_checkpoint(str(trained_run))
    image = to_tensor(decode(images / "val/cat/000.png"))
    square = v2.CenterCrop(73)(v2.Resize(73, antialias=True)(image))
    corners = [(0, 0), (0, 9), (9, 0), (9, 9), (round(4.5), round(4.5))]
    crops = [crop(square, top, left, 64, 64) for top, left in corners]
    with torch.inference_mode():
        single = [trained.inference(view[None]).softmax(1)[0] for view in [*crops, *map(hflip, crops)]]
        ten = trained.inference.probs(build.eval_view(trained.config, "ten_crop")(image)[None])[0]
        five = trained.inference.probs(build.eval_view(trained.config, "five")(image)[None])[0]
    assert torch.allclose(ten, torch.stack(single).mean(0), atol=1e-6)
    assert torch.allclose(five, torch.stack(single[:5]).mean(0), atol=1e-6)
    assert not torch.allclose(ten, five, atol=1e-6)


def test_views_are_scored(evaluate: Evaluate) -> None:
    found = {
        views: json.loads((evaluate(f"views={views}", folder=views) / "scores.json").read_text())["loss"]
        for views in ("center", "ten_crop")
    }
    assert found["center"] != found["ten_crop"]
    with pytest.raises(ConfigError, match="views must be one of center, five, ten_crop; got 'two'"):
        evaluate("views=two", folder="x")


def test_another_folder_is_matched_by_name(evaluate: Evaluate, tmp_path: Path) -> None:
    """A folder that is not divided is scored whole; cat is class 2 of the net and class 0 of the folder."""
    root = write_images(tmp_path / "other", {"cat": 3, "bee": 2})
    out = evaluate(f"data.root='{root}'")
    found = json.loads((out / "scores.json").read_text())
    assert (found["split"], found["images"], found["data"]) == ("all", 5, str(root))
    assert [row["label"] for row in rows(out / "predictions.csv")] == ["bee"] * 2 + ["cat"] * 3
    classes = rows(out / "classes.csv")
    assert [(row["class"], row["images"], row["recall"] == "") for row in classes] == [
        ("ant", "0", True),
        ("bee", "2", False),
        ("cat", "3", False),
    ]
    only = write_images(tmp_path / "only", {"test/cat": 3})
    assert json.loads((evaluate(f"data.root='{only}'", folder="b") / "scores.json").read_text())["split"] == "test"
    with pytest.raises(DataError, match="only has no split val; it has test"):
        evaluate(f"data.root='{only}'", "split=val", folder="c")


def test_a_divided_folder_with_other_classes(trained_run: Path, tmp_path: Path) -> None:
    """Its training split may have classes that the split which is scored has not."""
    trained = load_checkpoint(str(trained_run))
    root = write_images(tmp_path / "b", {"train/dog": 2, "train/cat": 2, "val/cat": 2})
    settings = DataConfig(**{**trained.config["data"], "root": str(root)})
    name, split = select_split(trained, settings, None, from_run=False)
    assert (name, split.labels.tolist(), split.classes) == ("val", [2, 2], ["ant", "bee", "cat"])
    with pytest.raises(
        DataError, match=r"every class must be in the checkpoint; .* has dog, the checkpoint has ant, bee, cat"
    ):
        select_split(trained, settings, "train", from_run=False)


def test_folders_that_are_named_as_splits(trained_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    trained = load_checkpoint(str(trained_run))
    root = write_images(tmp_path / "b", {"Testing/cat": 2, "Testing/ant": 1, "cat": 3, "ant": 3})
    settings = DataConfig(**{**trained.config["data"], "root": str(root)})
    for wanted in (None, "test", "all"):
        with pytest.raises(
            DataError, match=r"Testing is named like a split, ant, cat like a class.*data.splits.test=Testing"
        ):
            select_split(trained, settings, wanted, from_run=False)
    name, split = select_split(trained, replace(settings, splits={"test": "Testing"}), None, from_run=False)
    assert (name, split.class_counts()) == ("test", [1, 0, 2])
    assert f"data: not used in {root}: ant, cat" in caplog.messages
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "ant")
    name, split = select_split(trained, settings, None, from_run=False)
    assert (name, len(split)) == ("test", 3)
    assert f"data: the splits of {root} are test=Testing" in caplog.messages


def test_the_splits_of_a_run_are_not_those_of_another_folder(evaluate: Evaluate, tmp_path: Path) -> None:
    root = write_images(tmp_path / "other", {"x/cat": 1, "x/bee": 2, "y/cat": 4})
    out = evaluate(f"data.root='{root}'", "data.splits.test=x")
    assert len(rows(out / "predictions.csv")) == 3


def test_words_of_what_cannot_be_scored(evaluate: Evaluate, trained_run: Path, tmp_path: Path) -> None:
    root = write_images(tmp_path / "other", {"cat": 1, "dog": 1, "wolf": 1})
    with pytest.raises(
        DataError, match=r"every class must be in the checkpoint; .*other/ has dog, wolf, the checkpoint has"
    ):
        evaluate(f"data.root='{root}'")
    with pytest.raises(DataError, match=r"got 'nowhere': the folder does not exist"):
        evaluate("data.root=./nowhere".replace("./", ""), folder="b")
    with pytest.raises(ConfigError, match="split must be one of val, test, train, all; got 'dev'"):
        evaluate("split=dev", folder="c")
    with pytest.raises(ConfigError, match="ckpt must be given: ckpt=VALUE"):
        plain(name="evaluate")


def test_the_data_of_the_run_may_be_gone(
    evaluate: Evaluate, train: Callable[..., float | None], images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "moved")
    train(f"data.root={tmp_path / 'moved'}")
    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(DataError, match=r"got '.*/moved': the data of the run was moved or deleted"):
        evaluate(ckpt=tmp_path / "run")
    assert evaluate(f"data.root='{images}'", ckpt=tmp_path / "run", folder="b").is_dir()


def test_a_file_that_cannot_be_read(evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_images(tmp_path / "other", {"cat": 3, "bee": 2})
    (root / "cat/001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot read the image .*001.png"):
        evaluate(f"data.root='{root}'")
    out = evaluate(f"data.root='{root}'", "data.on_error=skip", folder="b")
    assert json.loads((out / "scores.json").read_text())["images"] == 4
    assert len(rows(out / "predictions.csv")) == 4
    assert "1 images could not be read" in capsys.readouterr().out
    assert rows(out / "skipped.csv")[0]["path"].endswith("001.png")


def test_every_image_is_asked_about_once(trained_run: Path) -> None:
    trained = load_checkpoint(str(trained_run))
    settings = DataConfig(**{**trained.config["data"], "batch_size": 4})
    _, split = select_split(trained, settings, "val", from_run=True)
    loader = split_loader(split, build.eval_view(trained.config), settings)
    assert len(predict_split(trained.inference, loader, split).paths) == 11
    for broken in (list(loader)[:-1], [*loader, next(iter(loader))]):
        with pytest.raises(DataError, match="every image must be predicted exactly once"):
            predict_split(trained.inference, broken, split)


def listed(count: int) -> Split:
    return Split("", ["a"], [f"{number}.png" for number in range(count)], np.zeros(count, np.int64))


def told(labels: Sequence[int], said: Sequence[int], probs: Sequence[float] | None = None) -> Predictions:
    top = np.array([[answer, (answer + 1) % 3] for answer in said])
    first = np.array(probs or [0.9] * len(said), np.float32)
    numbers = np.arange(len(said))
    return Predictions(listed(len(said)), numbers, np.array(labels), top, np.stack([first, 1 - first], 1), first, 0.5)


def test_confusion_and_classes_by_hand() -> None:
    found = told([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 2])
    matrix = confusion_matrix(found, 3)
    assert matrix.tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    table = class_report(found, matrix, ["a", "b", "c"])
    assert table[0] == {
        "class": "a", "images": 3, "recall": 1 / 3, "precision": 1 / 2, "f1": 2 / 5, "confused with": "b (2)",
    }  # fmt: skip
    assert (table[2]["recall"], table[2]["confused with"]) == (1.0, "")
    assert confused_pairs(matrix, ["a", "b", "c"]) == [("a", "b", 2, 2 / 3), ("b", "a", 1, 1 / 2)]
    numbers = compute_metrics(found)
    assert (numbers["top1"], numbers["top5"]) == (3 / 6, 4 / 6), "top-5 of two answers each"


def test_intervals() -> None:
    """Wilson's interval, with the numbers of Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson_interval(right, count) == pytest.approx((low, high), abs=5e-5)


def test_calibration_by_hand() -> None:
    """Two bins: four answers with 0.95, three of them right; two with 0.55, one of them right."""
    found = told([0] * 6, [0, 0, 0, 1, 0, 1], [0.95] * 4 + [0.55] * 2)
    error, bins = calibration(found)
    assert [(round(said, 6), was, count) for said, was, count in bins] == [(0.55, 0.5, 2), (0.95, 0.75, 4)]
    assert error == pytest.approx((0.2 * 4 + 0.05 * 2) / 6)
    sure = told([0], [0], [1.0])
    assert calibration(sure) == (0.0, [(1.0, 1.0, 1)])


def test_many_classes_have_a_table_of_the_weakest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from rich.console import Console

    from alexlab.inference.report import summary_tables, write_evaluation

    generator = np.random.default_rng(0)
    labels = np.arange(200) % 50
    said = np.where(generator.random(200) < 0.7, labels, (labels + 1) % 50)
    top = np.stack([said, (said + 1) % 50], 1)
    probs = np.full((200, 2), 0.5, np.float32)
    found = Predictions(listed(200), np.arange(200), labels, top, probs, probs[:, 0], 1.0)
    with caplog.at_level(logging.WARNING):
        evaluation = write_evaluation(found, [f"class {n}" for n in range(50)], tmp_path, {"split": "val"})
    for table in summary_tables(evaluation):
        Console(width=120).print(table)
    printed = capsys.readouterr().out
    assert "the 30 classes with the lowest recall, of 50" in printed and "most frequent confusions" in printed
    assert len(rows(tmp_path / "classes.csv")) == 50


def check(words: dict[str, Any]) -> None:
    from alexlab.tasks.evaluate import check

    check(words)


def test_a_sweep_over_checkpoints_is_checked_first(trained_run: Path) -> None:
    check({"ckpt": str(trained_run)})
    with pytest.raises(ConfigError, match="nothing does not exist"):
        check({"ckpt": "nothing"})
