import csv
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_calibration_error
from torchvision.transforms import v2
from torchvision.transforms.functional import crop, hflip

from alexlab.config import build_data
from alexlab.data.config import DataConfig
from alexlab.data.dataset import to_tensor
from alexlab.data.decode import decode
from alexlab.data.labels import UNREADABLE
from alexlab.data.splits import Split
from alexlab.errors import ConfigError, DataError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.inference.chosen_images import choose_images
from alexlab.inference.metrics import (
    CalibrationBin,
    calibration,
    class_report,
    compute_metrics,
    confused_pairs,
    confusion_matrix,
)
from alexlab.inference.plots import calibration_plot, confused_classes
from alexlab.inference.predictions import Predictions, predict_members, select_split, split_loader
from alexlab.inference.report import Evaluation, summary_tables, write_evaluation, write_page
from alexlab.records.record import RunRecord
from alexlab.records.run import Run
from alexlab.records.saved_predictions import read_predictions
from alexlab.records.significance import wilson_interval
from alexlab.tasks.evaluate import main
from alexlab.training.metrics import ClassificationMetrics
from alexlab.training.preprocessing import Inference
from support.images import write_images
from support.runs import plain, rows

Evaluate = Callable[..., Path]


@pytest.fixture
def evaluate(trained_run: Path, tmp_path: Path) -> Evaluate:
    """Evaluate the tiny network with overrides and return the folder of the results."""

    def call(*overrides: str, ckpt: Path = trained_run, folder: str = "out") -> Path:
        out = tmp_path / folder
        out.mkdir()
        main(Run(config=plain(f"ckpt='{ckpt}'", "data.num_workers=0", *overrides, name="evaluate"), dir=out))
        return out

    return call


def test_metrics_equal_those_of_the_training(
    evaluate: Evaluate, trained_run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = RunRecord(trained_run).read()["best"]
    out = evaluate("split=val")
    metrics = json.loads((out / "scores.json").read_text())
    assert (metrics["top1"], metrics["top5"], metrics["images"]) == (best["top1"], best["top5"], best["count"])
    assert metrics["loss"] == pytest.approx(best["loss"], rel=1e-5)
    assert metrics["top1_error"] == pytest.approx(1 - best["top1"])
    assert {path.name for path in out.iterdir()} == {
        "scores.json", "classes.csv", "confusion.csv", "confusion.png", "calibration.png", "predictions.csv", "evaluation.html",
    }  # fmt: skip
    predictions = rows(out / "predictions.csv")
    assert [row["path"] for row in predictions] == sorted(str(path) for path in (images / "val").rglob("*.png"))
    assert sum(row["class1"] == row["label"] for row in predictions) == round(best["top1"] * len(predictions))
    assert all(float(row["prob1"]) >= float(row["prob2"]) >= float(row["prob3"]) for row in predictions)
    printed = capsys.readouterr().out
    assert "top-1" in printed and "95 % interval" in printed and "recall" in printed
    assert "top-" not in printed.replace("top-1", ""), "top-5 of three classes is always 1"
    # The confusion matrix equals the counts of the predictions.
    with (out / "confusion.csv").open() as file:
        header, *matrix = list(csv.reader(file))
    for name, *counts in matrix:
        for predicted, count in zip(header[1:], counts, strict=True):
            assert int(count) == sum(row["label"] == name and row["class1"] == predicted for row in predictions)
    page = (out / "evaluation.html").read_text()
    num_mistakes = sum(row["class1"] != row["label"] for row in predictions)
    assert page.count('src="data:image/') == page.count("<figcaption><span>true ") == num_mistakes
    assert "loss (cross-entropy)" in page and f"<h1>alexnet, 3 classes on {images.name}: val split</h1>" in page
    assert page.count("<svg") == 2
    assert "http:" not in page.replace("http://www.w3.org/", "") and "https:" not in page


def test_the_test_split_is_the_default_and_workers_do_not_change_the_metrics(evaluate: Evaluate) -> None:
    first = json.loads((evaluate() / "scores.json").read_text())
    assert (first["split"], first["images"]) == ("test", 7)
    second = json.loads((evaluate("data.num_workers=2", "data.batch_size=2", folder="two") / "scores.json").read_text())
    for name in ("top1", "top5", "loss"):
        assert second[name] == pytest.approx(first[name], rel=1e-5)


def test_metrics_of_a_run_on_two_devices(
    evaluate: Evaluate, train: Callable[..., float | None], tmp_path: Path
) -> None:
    train("trainer.devices=2", "trainer.max_epochs=2", run_dir=tmp_path / "two", isolated=True)
    metrics = json.loads((evaluate("split=val", ckpt=tmp_path / "two") / "scores.json").read_text())
    best = RunRecord(tmp_path / "two").read()["best"]
    assert (metrics["top1"], metrics["images"]) == (best["top1"], 11)
    assert metrics["loss"] == pytest.approx(best["loss"], rel=1e-5)
    kept, predictions = read_predictions(tmp_path / "two", "val"), rows(tmp_path / "out/predictions.csv")
    assert kept is not None and len(kept) == 11, "one row per image, although each device has 6 items"
    assert [row["path"].partition("/val/")[2] for row in predictions] == [path[4:] for path in kept.paths]
    assert [row["class1"] for row in predictions] == kept.classes[kept.predicted].tolist()
    assert [float(row["prob1"]) for row in predictions] == pytest.approx(kept.top_probs[:, 0].tolist(), abs=2e-4)


def test_chosen_images_are_shown_with_their_true_and_predicted_classes(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    out = evaluate("split=val", "show=[cat/001.png,ant/002.png]")
    printed = capsys.readouterr().out
    by_path = {row["path"]: row for row in rows(out / "predictions.csv")}
    for name in ("cat/001.png", "ant/002.png"):
        (row,) = [found for path, found in by_path.items() if path.endswith(name)]
        (line,) = [line for line in printed.splitlines() if name in line]
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        mark = "" if row["label"] == row["class1"] else "wrong"
        assert cells[1:] == [row["label"], row["class1"], f"{float(row['prob1']):.4f}", mark]
    page = (out / "evaluation.html").read_text()
    assert "Chosen images" in page and page.count("<figcaption>") >= 2 and "001.png" in page
    with Image.open(out / "images.png") as image:
        assert image.width > image.height / 2 > 50
    assert not (evaluate("split=val", folder="without") / "images.png").exists()


def test_a_number_of_images_is_evenly_spaced(trained_run: Path) -> None:
    model = load_checkpoint(str(trained_run))
    settings = DataConfig(**{**model.config["data"], "num_workers": 0})
    _, split = select_split(model, settings, "val", from_run=True)
    predictions = predict_members(model.inference, split_loader(split, model.reader(), settings), split)[0]
    count = len(predictions.labels)
    assert choose_images(predictions, 3) == [0, round((count - 1) / 2), count - 1]
    assert choose_images(predictions, 1000) == list(range(count))
    assert choose_images(predictions, None) == []
    assert choose_images(predictions, predictions.paths[4]) == [4]
    for value, message in (
        (0, "show must be null, a number of images or a list of their paths; got 0"),
        ([3], r"list of their paths; got \[3\]"),
        (True, "list of their paths; got True"),
        ("nothing.png", "by the end of their paths; got nothing.png: the split has no such image"),
        ("001.png", r"got 001.png: 3 paths end with it, such as .*ant/001.png, .*bee/001.png, .*cat/001.png"),
    ):
        with pytest.raises(ConfigError, match=message):
            choose_images(predictions, value)


def test_ten_crops_are_ten_single_crops(trained_run: Path, images: Path) -> None:
    """Computed by hand: shorter side 73 = 64 / 0.875, center square, corners and center of size 64, and their mirror images."""
    model = load_checkpoint(str(trained_run))
    image = to_tensor(decode(images / "val/cat/000.png"))
    square = v2.CenterCrop(73)(v2.Resize(73, antialias=True)(image))
    corners = [(0, 0), (0, 9), (9, 0), (9, 9), (round(4.5), round(4.5))]
    crops = [crop(square, top, left, 64, 64) for top, left in corners]
    with torch.inference_mode():
        single = [model.inference(view[None]).softmax(1)[0] for view in [*crops, *map(hflip, crops)]]
        ten = model.inference.probs(build_data.eval_view(model.config, "ten_crop")(image)[None])[0]
        five = model.inference.probs(build_data.eval_view(model.config, "five")(image)[None])[0]
    assert torch.allclose(ten, torch.stack(single).mean(0), atol=1e-6)
    assert torch.allclose(five, torch.stack(single[:5]).mean(0), atol=1e-6)
    assert not torch.allclose(ten, five, atol=1e-6)


def test_views_have_the_scale_of_the_central_crop_and_need_it(trained_run: Path, images: Path) -> None:
    model = load_checkpoint(str(trained_run))
    image = to_tensor(decode(images / "val/cat/000.png"))
    recipe = {"_target_": "alexlab.data.transforms.CenterView", "size": 64, "ratio": 0.95}
    config = {**model.config, "augmentation": {"eval": {"center": recipe}}}
    five = build_data.eval_view(config, "five")(image)
    assert torch.equal(five[4], build_data.eval_view(config)(image))
    for name in ("keras", "squash"):
        config = plain("data.image_size=64", f"augmentation={name}", "test.views=ten_crop")
        for call, key in (
            (build_data.extra_views, "test.views"),
            (partial(build_data.eval_view, views="ten_crop"), "views"),
        ):
            with pytest.raises(
                ConfigError, match=f"^{key}=ten_crop needs the central crop of augmentation/eval=center, which"
            ):
                call(config)


def test_views_change_the_metrics(evaluate: Evaluate) -> None:
    losses = {
        views: json.loads((evaluate(f"views={views}", folder=views) / "scores.json").read_text())["loss"]
        for views in ("center", "ten_crop")
    }
    assert losses["center"] != losses["ten_crop"]
    with pytest.raises(ConfigError, match="views must be one of center, five, ten_crop; got 'two'"):
        evaluate("views=two", folder="x")


def test_another_folder_is_matched_by_name(evaluate: Evaluate, tmp_path: Path) -> None:
    """A folder without splits is evaluated completely; cat is class 2 of the network and class 1 of the folder."""
    root = write_images(tmp_path / "other", {"cat": 3, "bee": 2})
    out = evaluate(f"data.root='{root}'")
    metrics = json.loads((out / "scores.json").read_text())
    assert (metrics["split"], metrics["images"], metrics["data"]) == ("all", 5, str(root))
    assert [row["label"] for row in rows(out / "predictions.csv")] == ["bee"] * 2 + ["cat"] * 3
    classes = rows(out / "classes.csv")
    assert [(row["class"], row["images"], row["recall"] == "") for row in classes] == [
        ("ant", "0", True),
        ("bee", "2", False),
        ("cat", "3", False),
    ]
    only = write_images(tmp_path / "only", {"test/cat": 3}, seed=1)
    assert json.loads((evaluate(f"data.root='{only}'", folder="b") / "scores.json").read_text())["split"] == "test"
    with pytest.raises(DataError, match="only has no split val; it has test"):
        evaluate(f"data.root='{only}'", "split=val", folder="c")


def test_unknown_classes_are_allowed_in_other_splits(trained_run: Path, tmp_path: Path) -> None:
    """The training split of another folder may have classes that the evaluated split does not have."""
    model = load_checkpoint(str(trained_run))
    root = write_images(tmp_path / "b", {"train/dog": 2, "train/cat": 2, "val/cat": 2})
    settings = DataConfig(**{**model.config["data"], "root": str(root)})
    name, split = select_split(model, settings, None, from_run=False)
    assert (name, split.labels.tolist(), split.classes) == ("val", [2, 2], ["ant", "bee", "cat"])
    with pytest.raises(
        DataError, match=r"every class must be in the checkpoint; .* has dog, the checkpoint has ant, bee, cat"
    ):
        select_split(model, settings, "train", from_run=False)


def test_folders_named_like_splits(trained_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = load_checkpoint(str(trained_run))
    root = write_images(tmp_path / "b", {"Testing/cat": 2, "Testing/ant": 1, "cat": 3, "ant": 3})
    settings = DataConfig(**{**model.config["data"], "root": str(root)})
    for wanted in (None, "test", "all"):
        with pytest.raises(
            DataError,
            match=r"some folders are named like splits \(Testing\), others like classes \(ant, cat\).*data.splits.test=Testing",
        ):
            select_split(model, settings, wanted, from_run=False)
    name, split = select_split(model, replace(settings, splits={"test": "Testing"}), None, from_run=False)
    assert (name, split.class_counts()) == ("test", [1, 0, 2])
    assert f"data: not used in {root}: ant, cat" in caplog.messages
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "ant")
    name, split = select_split(model, settings, None, from_run=False)
    assert (name, len(split)) == ("test", 3)
    assert f"data: the splits of {root} are test=Testing" in caplog.messages


def test_split_folders_of_the_run_do_not_apply_to_another_folder(evaluate: Evaluate, tmp_path: Path) -> None:
    root = write_images(tmp_path / "other", {"x/cat": 1, "x/bee": 2, "y/cat": 4})
    out = evaluate(f"data.root='{root}'", "data.splits.test=x")
    assert len(rows(out / "predictions.csv")) == 3


def test_error_messages(evaluate: Evaluate, trained_run: Path, tmp_path: Path) -> None:
    root = write_images(tmp_path / "other", {"cat": 1, "dog": 1, "wolf": 1})
    with pytest.raises(
        DataError, match=r"every class must be in the checkpoint; .*other/ has dog, wolf, the checkpoint has"
    ):
        evaluate(f"data.root='{root}'")
    with pytest.raises(DataError, match=r"got 'nowhere': the folder does not exist"):
        evaluate("data.root=./nowhere".replace("./", ""), folder="b")
    with pytest.raises(ConfigError, match="split must be one of val, test, train, all; got 'dev'"):
        evaluate("split=dev", folder="c")
    with pytest.raises(ConfigError, match="ckpt is required: ckpt=VALUE"):
        plain(name="evaluate")


def test_missing_data_of_the_run(
    evaluate: Evaluate, train: Callable[..., float | None], images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "moved")
    train(f"data.root={tmp_path / 'moved'}")
    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(DataError, match=r"got '.*/moved': the data of the run was moved or deleted"):
        evaluate(ckpt=tmp_path / "run")
    assert evaluate(f"data.root='{images}'", ckpt=tmp_path / "run", folder="b").is_dir()


def test_unreadable_files_are_skipped_on_request(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path / "other", {"cat": 3, "bee": 2})
    (root / "cat/001.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"cannot read the image .*001.png: .*; data.on_error=skip leaves"):
        evaluate(f"data.root='{root}'")
    out = evaluate(f"data.root='{root}'", "data.on_error=skip", folder="b")
    assert json.loads((out / "scores.json").read_text())["images"] == 4
    assert len(rows(out / "predictions.csv")) == 4
    assert "1 image could not be read" in capsys.readouterr().out
    assert rows(out / "skipped.csv")[0]["path"].endswith("001.png")


def test_every_image_must_be_predicted_exactly_once(trained_run: Path) -> None:
    model = load_checkpoint(str(trained_run))
    settings = DataConfig(**{**model.config["data"], "batch_size": 4})
    _, split = select_split(model, settings, "val", from_run=True)
    loader = split_loader(split, model.reader(), settings)
    assert len(predict_members(model.inference, loader, split)[0].paths) == 11
    for broken in (list(loader)[:-1], [*loader, next(iter(loader))]):
        with pytest.raises(DataError, match="every image must be predicted exactly once"):
            predict_members(model.inference, broken, split)


class LogitTable(nn.Module):
    """Network whose logits are the row of a table that the first pixel of the image selects."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[images[:, 0, 0, 0].round().long()]


def test_metrics_and_predictions_come_from_one_computation() -> None:
    """Ties of the logits included: the rows of predictions.csv add up to the metrics, which are those of the final test."""
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0], [3.0, 1.0, 3.0], [0.5, 0.1, 0.2], [9.0, 0.0, 0.0]])
    labels = torch.tensor([0, 2, 0, 1, UNREADABLE])
    inference = Inference(LogitTable(logits), mean=[0.0], std=[1 / 255]).eval()
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1)
    split = Split("", ["a", "b", "c"], [f"{number}.png" for number in range(5)], labels.clamp(min=0).numpy())
    loader = [(images[rows], labels[rows], torch.arange(5)[rows]) for rows in (slice(0, 2), slice(2, 5))]
    predictions = predict_members(inference, loader, split)[0]
    assert predictions.indices.tolist() == [0, 1, 2, 3]
    expected = ClassificationMetrics(3)
    expected.update(logits, labels, F.cross_entropy(logits, labels.clamp(min=0), reduction="none"))
    final_test = {name: value.item() for name, value in expected.compute().items()}
    assert predictions.metrics == {name: final_test[name] for name in ("loss", "top1", "top5", "count")}
    assert predictions.correct.mean() == predictions.metrics["top1"]
    assert predictions.metrics["loss"] == pytest.approx(-np.log(predictions.label_prob.astype(float)).mean(), rel=1e-6)


def make_predictions(
    labels: Sequence[int], classes: Sequence[int], probs: Sequence[float] | None = None
) -> Predictions:
    """Return predictions with two top classes each, the given one and the next one of three."""
    top = np.array([[number, (number + 1) % 3] for number in classes])
    first = np.array(probs or [0.9] * len(classes), np.float32)
    return from_arrays(np.array(labels), top, np.stack([first, 1 - first], 1))


def from_arrays(labels: np.ndarray, top_classes: np.ndarray, top_probs: np.ndarray) -> Predictions:
    hits, count = top_classes == labels[:, None], len(labels)
    metrics = {"loss": 0.5, "top1": float(hits[:, 0].mean()), "top5": float(hits.any(1).mean()), "count": count}
    split = Split("", ["a"], [f"{number}.png" for number in range(count)], np.zeros(count, np.int64))
    return Predictions(split, np.arange(count), labels, top_classes, top_probs, top_probs[:, 0], metrics)


def test_confusion_matrix_and_class_report_by_hand() -> None:
    predictions = make_predictions([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 2])
    matrix = confusion_matrix(predictions, 3)
    assert matrix.tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    report = class_report(predictions, matrix, ["a", "b", "c"])
    assert report[0] == {
        "class": "a", "images": 3, "recall": 1 / 3, "precision": 1 / 2, "f1": 2 / 5, "confused with": "b (2)",
    }  # fmt: skip
    assert (report[2]["recall"], report[2]["confused with"]) == (1.0, "")
    assert confused_pairs(matrix, ["a", "b", "c"]) == [("a", "b", 2, 2 / 3), ("b", "a", 1, 1 / 2)]
    metrics = compute_metrics(predictions)
    assert (metrics["top1"], metrics["top5"]) == (3 / 6, 4 / 6), "top-5 with two top classes each"


def test_wilson_intervals() -> None:
    """The values are those of Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    for correct, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)


def test_calibration_by_hand() -> None:
    """Two bins: four predictions with 0.95, three of them correct; two with 0.55, one of them correct."""
    predictions = make_predictions([0] * 6, [0, 0, 0, 1, 0, 1], [0.95] * 4 + [0.55] * 2)
    error, bins = calibration(predictions)
    assert [(round(part.confidence, 6), part.accuracy, part.num_images) for part in bins] == [
        (0.55, 0.5, 2),
        (0.95, 0.75, 4),
    ]
    assert error == pytest.approx((0.2 * 4 + 0.05 * 2) / 6)
    certain = make_predictions([0], [0], [1.0])
    assert calibration(certain) == (0.0, [(1.0, 1.0, 1)])


def test_calibration_error_equals_that_of_torchmetrics() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.05, 0.999, 1000)  # none exactly on a bin boundary, where the two differ
    correct = generator.random(1000) < confidence
    probs = np.stack([confidence, 1 - confidence], 1).astype(np.float32)
    predictions = from_arrays(np.where(correct, 0, 2), np.tile([0, 1], (1000, 1)), probs)
    expected = binary_calibration_error(torch.tensor(probs[:, 0]), torch.tensor(correct).long(), n_bins=15, norm="l1")
    assert calibration(predictions)[0] == pytest.approx(expected.item(), abs=1e-6)


def test_many_classes_have_a_table_of_the_lowest_recalls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from rich.console import Console

    generator = np.random.default_rng(0)
    labels = np.arange(200) % 50
    classes = np.where(generator.random(200) < 0.7, labels, (labels + 1) % 50)
    top = np.stack([classes, (classes + 1) % 50], 1)
    probs = np.full((200, 2), 0.5, np.float32)
    predictions = from_arrays(labels, top, probs)
    with caplog.at_level(logging.WARNING):
        evaluation = Evaluation(predictions, [f"class {n}" for n in range(50)], {"split": "val"})
        write_evaluation(evaluation, tmp_path)
    for table in summary_tables(evaluation):
        Console(width=120).print(table)
    printed = capsys.readouterr().out
    assert "the 30 classes with the lowest recall, of 50" in printed and "most frequent confusions" in printed
    assert len(rows(tmp_path / "classes.csv")) == 50


@pytest.mark.parametrize(
    ("labels", "classes", "num_classes", "sentence", "num_drawn"),
    [
        ([0, 1, 1], [0, 1, 0], 2, "2 of 3 images are classified correctly", 2),
        ([1], [1], 3, "The only image is classified correctly", 3),
        ([1], [2], 3, "The only image is not classified correctly", 3),
        ([2, 2, 2], [2, 2, 0], 5, "2 of 3 images", 5),
        ([0, 1, 2], [0, 1, 2], 5, "3 of 3 images", 5),
        (range(1000), range(1000), 1000, "1,000 of 1,000 images", 0),
        (range(1000), [n + n % 2 for n in range(999)] + [0], 1000, "500 of 1,000 images", 30),
    ],
)
def test_pages_of_small_and_large_cases(
    labels: Sequence[int], classes: Sequence[int], num_classes: int, sentence: str, num_drawn: int, tmp_path: Path
) -> None:
    top = np.stack([np.array(classes), (np.array(classes) + 1) % num_classes], 1)
    probs = np.tile(np.array([[0.75, 0.25]], np.float32), (len(top), 1))
    names = [f"class {number}" for number in range(num_classes)]
    details = {"data": "a/b", "split": "val"}
    evaluation = Evaluation(from_arrays(np.array(labels), top, probs), names, details)
    write_evaluation(evaluation, tmp_path)
    write_page(evaluation, tmp_path / "page.html", "title")
    page = (tmp_path / "page.html").read_text()
    assert sentence in page and f">{100 * evaluation.top1:.2f}<" in page
    assert ("top-5" in page) == (num_classes > 5)
    assert len(confused_classes(evaluation.confusion)) == num_drawn
    assert (tmp_path / "confusion.png").exists() == ('aria-label="confusion"' in page) == (num_drawn > 0)
    assert ("No image is misclassified" in page) == (num_drawn == 0)
    assert ("the most frequent confusions, of 1,000" in page) == (num_drawn == 30)


def test_points_of_few_images_are_hollow() -> None:
    axes = calibration_plot(
        [CalibrationBin(0.3, 0.4, 9), CalibrationBin(0.6, 0.5, 10), CalibrationBin(0.9, 1, 90)]
    ).axes[0]
    faces = [len(points.get_facecolor()) for points in axes.collections]
    sizes = [points.get_sizes()[0] for points in axes.collections]
    assert faces == [0, 1, 1] and sizes[1] < sizes[2]


def check(config: dict[str, Any]) -> None:
    from alexlab.tasks.evaluate import check

    check(config)


def test_a_missing_checkpoint_is_rejected_before_a_sweep(trained_run: Path) -> None:
    check({"ckpt": str(trained_run)})
    with pytest.raises(ConfigError, match="nothing does not exist"):
        check({"ckpt": "nothing"})
