"""Trained models from Python, compared with the commands."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import alexlab
from alexlab.api.model import Model
from alexlab.api.results import Explanation, Prediction
from alexlab.data.decode import decode
from alexlab.errors import ConfigError, DataError, NumericError
from alexlab.inference.checkpoint import load_checkpoint
from support.runs import plain


@pytest.fixture(scope="module")
def model(trained_run: Path) -> Model:
    return alexlab.load(trained_run, device="cpu")


@pytest.fixture(scope="module")
def files(images: Path) -> list[Path]:
    return sorted(images.glob("test/*/*"))


def test_predictions_are_those_of_the_command(
    model: Model, trained_run: Path, files: list[Path], tmp_path: Path
) -> None:
    from alexlab.records.run import Run
    from alexlab.tasks.predict import main

    config = plain(f"ckpt={trained_run}", f"input={files[0].parents[1]}", "device=cpu", name="predict")
    main(Run(config=config, dir=tmp_path))
    rows = [line.split(",") for line in (tmp_path / "predictions.csv").read_text().splitlines()[1:]]
    found = model.predict(files[0].parents[1])
    assert isinstance(found, list)
    assert [Path(prediction.path) for prediction in found] == [Path(row[0]) for row in rows]
    assert [prediction.label for prediction in found] == [row[1] for row in rows]
    assert [prediction.prob for prediction in found] == pytest.approx([float(row[2]) for row in rows], abs=1e-4)


def test_one_image_gives_one_prediction(model: Model, files: list[Path]) -> None:
    from_file = model.predict(files[0], top_k=2)
    assert isinstance(from_file, Prediction)
    assert len(from_file.labels) == len(from_file.probs) == 2
    assert str(from_file) == f"{from_file.label} {from_file.prob:.3f}, {from_file.labels[1]} {from_file.probs[1]:.3f}"
    pixels = decode(files[0], model._trained.decoding)
    for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), Image.open(files[0])):
        prediction = model.predict(image, top_k=2)
        assert isinstance(prediction, Prediction)
        assert (prediction.labels, prediction.probs) == (from_file.labels, from_file.probs)
    several = model.predict([files[0], pixels, *files], batch_size=3)
    assert isinstance(several, list) and len(several) == len(files) + 2
    assert sum(several[0].probs) == pytest.approx(1)
    ten = model.predict(files[0], views="ten_crop")
    assert isinstance(ten, Prediction) and ten.probs[:2] != from_file.probs


def test_the_net_and_the_preprocessing_give_the_probabilities(model: Model, files: list[Path]) -> None:
    with torch.inference_mode():
        probs = model.net(model.preprocess(files)).softmax(1)
    for row, prediction in zip(probs, model.predict(files), strict=True):
        assert model.classes[int(row.argmax())] == prediction.label
        assert row.max().item() == pytest.approx(prediction.prob, abs=1e-5)


def test_the_evaluation_has_the_scores_of_the_run(model: Model, images: Path) -> None:
    validation, test = model.evaluate(split="val"), model.evaluate()
    assert validation.top1 == pytest.approx(model.best["top1"], abs=1e-6)
    assert (test.details["split"], test.metrics["images"], test.confusion.sum()) == ("test", 7, 7)
    assert test.top1 == pytest.approx(np.trace(test.confusion) / 7)
    assert len(test.classes) == 3 and test.top5 == 1
    elsewhere = model.evaluate(images / "val", batch_size=2, num_workers=0)
    assert (elsewhere.details["split"], elsewhere.top1) == ("all", validation.top1)
    with pytest.raises(DataError, match="the folder does not exist"):
        model.evaluate("/no where")


def test_features_are_the_last_hidden_layer(model: Model, files: list[Path]) -> None:
    features = model.features(files, batch_size=3)
    head = [layer for layer in model.net.modules() if isinstance(layer, torch.nn.Linear)][-1]
    assert features.shape == (len(files), head.in_features)
    with torch.inference_mode():
        logits = head(features)
    assert [model.classes[number] for number in logits.argmax(1).tolist()] == [p.label for p in model.predict(files)]


def test_features_need_the_memory_of_one_batch(model: Model, files: list[Path]) -> None:
    taken: list[Path] = []
    taken_at_forward: list[int] = []
    handle = model.net.register_forward_hook(lambda *_: taken_at_forward.append(len(taken)))
    try:
        model.features((taken.append(file) or file for file in files), batch_size=3)  # type: ignore[func-returns-value]
    finally:
        handle.remove()
    assert taken_at_forward[0] == 3 and taken_at_forward[-1] == len(files)
    with pytest.raises(ConfigError, match="batch_size must be at least 1; got 0"):
        model.features(files, batch_size=0)


def test_the_home_folder_can_be_written_as_a_tilde(
    model: Model, trained_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "run").symlink_to(trained_run)
    (tmp_path / "images").symlink_to(images)
    (tmp_path / "names.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    again = alexlab.load("~/run", class_names="~/names.json", device="cpu")
    assert alexlab.load([Path("~/run")], device="cpu").classes == again.classes == model.classes
    assert isinstance(again.predict("~/images/test/ant/000.png"), Prediction)
    assert again.evaluate("~/images/val").metrics["images"] == model.evaluate(images / "val").metrics["images"]
    assert again.export("~/net.pth", images="~/images/test/*/*") <= 1e-4
    assert alexlab.runs("~/r[u]n").report("~/report").is_relative_to(tmp_path / "report")
    assert not Path("~").exists()


def test_an_explanation_is_displayed_as_an_image(model: Model, files: list[Path]) -> None:
    explanation = model.explain(files[0])
    prediction = model.predict(files[0])
    assert isinstance(explanation, Explanation) and isinstance(prediction, Prediction)
    assert (explanation.label, explanation.prob) == (prediction.label, pytest.approx(prediction.prob))
    assert explanation.cam.shape == explanation.image.shape[:2] == (64, 64)
    assert explanation._repr_png_().startswith(b"\x89PNG")
    assert model.explain(files[0], label=model.classes[2]).label == model.classes[2]
    with pytest.raises(ConfigError, match=r"label must be one of .*; got 'zebra'"):
        model.explain(files[0], label="zebra")
    with pytest.raises(DataError, match="explain takes one image"):
        model.explain(files[:2])


def test_threads_share_a_model(model: Model, files: list[Path]) -> None:
    many = files * 6
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda file: model.features(file)[0], many))
        cams = list(pool.map(lambda file: model.explain(file).cam, many))
    for number, file in enumerate(many):
        assert torch.equal(rows[number], model.features(file)[0])
        assert np.array_equal(cams[number], model.explain(file).cam)


def test_an_exported_file_is_loaded_again(
    model: Model, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "net.safetensors"
    assert model.export(path) <= 1e-4
    again = alexlab.load(path)
    assert again.predict(files) == model.predict(files)
    with pytest.raises(ConfigError, match=r"path must end in .safetensors, .onnx, .pt2, .pth; got .*net.tflite"):
        model.export(tmp_path / "net.tflite")
    monkeypatch.setattr("alexlab.inference.export.TOLERANCE", -1)
    with pytest.raises(NumericError):
        model.export(tmp_path / "other.safetensors", images=files)
    assert not (tmp_path / "other.safetensors").exists()


def test_invalid_options_are_named(model: Model, files: list[Path], trained_run: Path) -> None:
    with pytest.raises(ConfigError, match="top_k must be at least 1; got 0"):
        model.predict(files, top_k=0)
    with pytest.raises(ConfigError, match="batch_size must be at least 1; got -1"):
        model.predict(files, batch_size=-1)
    with pytest.raises(ConfigError, match="views"):
        model.predict(files, views="many")
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        alexlab.load("nowhere")
    with pytest.raises(DataError, match="images must have at least one image; found none"):
        model.features([])
    assert "alexnet, 3 classes" in repr(model)
    assert model.path == load_checkpoint(str(trained_run)).path
    assert model.config["seed"] == 1
