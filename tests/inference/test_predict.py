import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alexlab.config import build_data
from alexlab.data.dataset import to_tensor
from alexlab.data.decode import decode
from alexlab.errors import ConfigError, DataError, ImageError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.inference.input_files import find_files, read_list
from alexlab.inference.predict import FilePrediction, predict_files
from alexlab.inference.prediction_files import PredictionWriter
from alexlab.records.run import Run
from alexlab.tasks.predict import main
from support.browser import evaluate_script
from support.images import write_images
from support.runs import plain, rows

Predict = Callable[..., Path]


@pytest.fixture
def predict(trained_run: Path, tmp_path: Path) -> Predict:
    """Predict with the tiny network and return the folder of the results."""

    def call(*overrides: str, folder: str = "out") -> Path:
        out = tmp_path / folder
        out.mkdir()
        main(Run(config=plain(f"ckpt='{trained_run}'", *overrides, name="predict"), dir=out))
        return out

    return call


def test_predictions_of_a_folder(
    predict: Predict, trained_run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = predict(f"input='{images / 'val'}'", "top_k=2", "batch_size=4")
    found = {row["path"]: row for row in rows(out / "predictions.csv")}
    assert list(found) == sorted(str(path) for path in (images / "val").rglob("*.png"))
    model = load_checkpoint(str(trained_run))
    view = build_data.eval_view(model.config)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == list(found)
    for line in lines:
        with torch.inference_mode():
            probs = model.inference.probs(view(to_tensor(decode(line["path"])))[None])[0]
        top = probs.topk(2)
        assert [entry["class"] for entry in line["predictions"]] == [model.names[number] for number in top.indices]
        assert [entry["prob"] for entry in line["predictions"]] == pytest.approx(top.values.tolist(), abs=1e-5)
        row = found[line["path"]]
        assert (row["class"], float(row["prob"])) == (
            line["predictions"][0]["class"],
            pytest.approx(line["predictions"][0]["prob"]),
        )
    assert {path.name for path in out.iterdir()} == {"predictions.csv", "predictions.jsonl"}
    assert "prediction 2" in capsys.readouterr().out


def stream(content: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        "a.png\né 文.png\n".encode(),
        "a.png\r\né 文.png\r\n\r\n".encode(),
        "\ufeffa.png\né 文.png".encode(),
        "a.png\0é 文.png\0".encode(),
        *("\ufeffa.png\r\né 文.png\r\n".encode(f"utf-16-{order}") for order in ("le", "be")),
        *("a.png\né 文.png\n".encode(f"utf-16-{order}") for order in ("le", "be")),
    ],
)
def test_lists_in_the_formats_of_common_programs(content: bytes) -> None:
    assert list(read_list(stream(content))) == ["a.png", "é 文.png"]


def test_a_list_is_read_while_it_is_written() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as target:
        found = read_list(source)
        target.write(b"a\nb.png\0c.p")
        assert next(found) == "a\nb.png"
        target.write(b"ng\0\xff.png\0")
        assert [next(found), next(found)] == ["c.png", "\udcff.png"]


def test_a_glob_that_matches_folders(tmp_path: Path) -> None:
    root = write_images(tmp_path / "root", {"b/deep": 1, "a": 2, ".": 1, "@eaDir": 1})
    names = ["000.png", "a/000.png", "a/001.png", "b/deep/000.png"]
    assert list(find_files(f"{root}/*")) == [f"{root}/{name}" for name in names]
    assert list(find_files(f"{root}/**/*.png")) == [f"{root}/{name}" for name in names]
    assert list(find_files(f"{root}/**")) == [f"{root}/{name}" for name in names]


def test_a_folder_is_read_in_the_order_of_its_sorted_paths(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_images(tmp_path / "root", {"a": 2, "a-b": 1, "a0/c": 1, "a/@eaDir": 1, ".": 1})
    write_images(tmp_path, {"far": 2})
    (root / "000.png").rename(root / "a-.png")
    (root / "a1").symlink_to(tmp_path / "far")
    (root / "a2").symlink_to(root / "a")
    os.mkfifo(root / "pipe.jpg")
    (root / "zero.jpg").symlink_to("/dev/zero")
    expected = ["a-.png", "a-b/000.png", "a/000.png", "a/001.png", "a0/c/000.png", "a1/000.png", "a1/001.png"]
    assert list(find_files(str(root))) == sorted(f"{root}/{name}" for name in expected)
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}/a2 is left out: it leads to a folder that was already read",
        f"{root}/pipe.jpg is left out: it is a FIFO, and only regular files are read",
        f"{root}/zero.jpg is left out: it is a device, and only regular files are read",
    ]


def test_predictions_of_a_file_a_glob_and_a_list(
    predict: Predict, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = images / "val/ant/000.png"
    assert [row["path"] for row in rows(predict(f"input='{file}'") / "predictions.csv")] == [str(file)]
    by_glob = predict(f"input='{images}/val/*/00[01].png'", folder="b")
    assert len(rows(by_glob / "predictions.csv")) == 6
    deep = predict(f"input='{images}/**/000.png'", folder="c")
    assert len(rows(deep / "predictions.csv")) == 9
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream(f"{file}\n\n{images}/val/bee/001.png\n".encode())))
    listed = predict("input='-'", folder="d")
    assert [row["path"] for row in rows(listed / "predictions.csv")] == [str(file), f"{images}/val/bee/001.png"]


def test_unreadable_files_are_listed_and_do_not_stop_the_command(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path / "mixed", {"a": 4})
    (root / "a/001.png").write_bytes(b"")
    (root / "a/002.jpg").write_bytes(b"text")
    (root / "a/.hidden.png").write_bytes(b"x")
    (root / "a/notes.txt").write_text("not an image")
    out = predict(f"input='{root}'", "batch_size=2")
    assert len(rows(out / "predictions.csv")) == 3
    assert {Path(row["path"]).name: row["code"] for row in rows(out / "failed.csv")} == {
        "001.png": "empty",
        "002.jpg": "unknown_format",
    }
    assert "2 files could not be read" in capsys.readouterr().out
    for path in root.glob("a/00[03].png"):
        path.unlink()
    (root / "a/002.png").unlink()
    with pytest.raises(DataError, match="must match images; found none; 2 files could not be read"):
        predict(f"input='{root}'", folder="b")


def test_memory_does_not_grow_with_the_number_of_files(trained_run: Path, images: Path) -> None:
    """Only a few batches of an endless list are read ahead."""
    model = load_checkpoint(str(trained_run))
    num_read = 0

    def endless() -> Iterator[str]:
        nonlocal num_read
        for number in itertools.count():
            num_read += 1
            yield str(images / f"val/ant/{number % 4:03d}.png")

    found = predict_files(
        model.inference,
        endless(),
        model.reader(),
        top_k=1,
        batch_size=8,
        num_threads=2,
    )
    for taken, prediction in enumerate(itertools.islice(found, 200), start=1):
        assert prediction.path.endswith(f"{(taken - 1) % 4:03d}.png"), "in order"
        assert num_read <= taken + 3 * 8 + 1


def test_a_folder_is_walked_lazily(tmp_path: Path) -> None:
    root = write_images(tmp_path / "deep", {"a/b/c": 2, "a": 1})
    (root / "a/loop").symlink_to(root)
    found = find_files(str(root))
    assert iter(found) is found
    assert len(list(found)) == 3


def test_the_gallery(predict: Predict, images: Path) -> None:
    out = predict(f"input='{images / 'val'}'", "gallery=true", "gallery_limit=3")
    page = (out / "gallery.html").read_text()
    assert page.count('src="data:image/') == page.count("<figcaption>") == 3
    assert "8 more images are in predictions.csv" in page
    assert f"<h1>Predictions for {images / 'val'}</h1>" in page
    assert page.rstrip().endswith("</html>")


@pytest.mark.slow
def test_the_gallery_sorts_and_filters(trained_run: Path, images: Path, tmp_path: Path) -> None:
    model = load_checkpoint(str(trained_run))
    model = replace(model, names=["constructor", "<script>", "class 10"])
    probs = [(0, 0.5), (1, 1.0), (2, 0.9), (1, 0.25)]
    with PredictionWriter(tmp_path, model, "-", gallery_limit=9) as writer:
        for number, (label, prob) in enumerate(probs):
            path = str(images / f"val/ant/{number % 4:03d}.png")
            writer.write(FilePrediction(path, (label, (label + 1) % 3), (prob, 1 - prob)))
        writer.write(FilePrediction("x.png", error=ImageError("it is empty", code="empty", reason="it is empty")))
    page = tmp_path / "gallery.html"
    assert "Predictions for a list of files" in page.read_text() and "1 file could not be read" in page.read_text()
    found = evaluate_script(
        page,
        """
        const shown = () => [...document.querySelectorAll('#gallery figure')].filter(each => each.getClientRects().length)
          .map(each => each.dataset.prob), set = (id, value) => { const control = document.getElementById(id);
          control[control.type === 'checkbox' ? 'checked' : 'value'] = value;
          control.dispatchEvent(new Event('input')); return shown(); };
        return {start: shown(), rising: set('sort', 'prob'), byClass: set('sort', 'class'), uncertain: set('uncertain', true),
          one: set('class', '<script>'), classes: [...document.getElementById('class').options].map(each => each.text),
          count: document.getElementById('count').textContent,
          captions: [...document.querySelectorAll('figcaption')].map(each => each.querySelectorAll('br').length)};
        """,
    )
    assert found["start"] == ["0.5", "1.0", "0.9", "0.25"]
    assert found["rising"] == ["0.25", "0.5", "0.9", "1.0"]
    assert found["byClass"] == ["1.0", "0.25", "0.9", "0.5"]
    assert found["uncertain"] == ["0.25", "0.5"] and found["one"] == ["0.25"]
    assert found["classes"] == ["all classes", "<script> (2)", "class 10 (1)", "constructor (1)"]
    assert found["count"] == "1 of 4 images"
    assert sorted(found["captions"]) == [1, 2, 2, 2], "a single class if its probability is 1"


def test_display_names_and_views(predict: Predict, images: Path, tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"ant": "Ameise", "bee": "Biene", "cat": "Katze"}')
    out = predict(f"input='{images / 'val'}'", f"class_names='{tmp_path / 'names.json'}'", "views=ten_crop")
    assert {row["class"] for row in rows(out / "predictions.csv")} <= {"Ameise", "Biene", "Katze"}


def test_error_messages(predict: Predict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a folder, a glob or -; nowhere does not exist \(looked for /.*/nowhere\)"):
        predict("input=nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"input=.*/empty must match images; found none"):
        predict(f"input='{tmp_path / 'empty'}'", folder="b")
    with pytest.raises(ConfigError, match="top_k must be an integer of at least 1; got 0"):
        predict("input=x", "top_k=0", folder="c")
    with pytest.raises(ConfigError, match="num_workers must be null or an integer of at least 0; got -1"):
        predict("input=x", "num_workers=-1", folder="d")
