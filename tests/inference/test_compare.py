"""Comparisons of two nets image by image, mostly on predictions that the tests write, so that every number is known."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from alexlab.cli.arguments import collect_runs
from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.inference.compare.comparison import OUTCOMES, match, paired_difference
from alexlab.inference.compare.sides import average, find_side
from alexlab.inference.export import write_safetensors
from alexlab.records.differences import RecordDifference, code_differences, record_differences
from alexlab.records.results import read_run
from alexlab.records.run import Run
from alexlab.records.saved_predictions import SavedPredictions, read_predictions
from alexlab.tasks.compare import main
from support.runs import plain, rows, write_record

CLASSES = ("cat", "dog", "fox")


def kept(predicted: Sequence[int], labels: Sequence[int], *, classes: Sequence[str] = CLASSES, prob: float = 0.6, first: int = 0) -> SavedPredictions:  # fmt: skip
    """Return predictions with the probability `prob` of the predicted class, on images numbered from `first`."""
    count, num_classes = len(labels), len(classes)
    probs = np.full((count, num_classes), (1 - prob) / (num_classes - 1), np.float32)
    probs[np.arange(count), predicted] = prob
    top = np.argsort(-probs, 1, kind="stable")[:, :5]
    return SavedPredictions(
        paths=np.array([f"{classes[label]}/{first + row}.png" for row, label in enumerate(labels)]),
        classes=np.array(classes),
        labels=np.array(labels),
        top_classes=top,
        top_probs=np.take_along_axis(probs, top, 1),
        label_prob=probs[np.arange(count), labels],
        probs=probs.astype(np.float16),
    )


def write_run(folder: Path, predictions: SavedPredictions, *, split: str = "val", seed: int = 1, lr: float = 0.1, data: dict[str, Any] | None = None, **entries: Any) -> Path:  # fmt: skip
    config = {"seed": seed, "optimizer": {"lr": lr}, "data": {"root": "/nowhere", **(data or {})}, "tags": []}
    best = {"top1": float(predictions.correct.mean()), "loss": 1.0}
    write_record(folder, config=config, seed=seed, best=best, data={"counts": {"val": len(predictions)}}, **entries)
    predictions.write(folder, split)
    return folder


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., Path]:
    """Compare two sides and return the folder of the results."""

    def call(*arguments: str | Path) -> Path:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        overrides = collect_runs([str(argument) for argument in arguments])
        main(Run(config=plain(*overrides, "data.num_workers=0", name="compare"), dir=out))
        return out

    return call


def outcomes(both: int, only_b: int, only_a: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which images A and B classify correctly."""
    counts = [both, only_b, only_a, wrong]
    return np.repeat([True, False, True, False], counts), np.repeat([True, True, False, False], counts)


def test_the_test_is_mcnemars_and_the_interval_covers_the_difference() -> None:
    found = paired_difference(*outcomes(59, 16, 6, 80))
    assert found.p == pytest.approx(2 * stats.binom(22, 0.5).cdf(6))
    assert found.value == pytest.approx(10 / 161) and found.low < found.value < found.high
    reverse = paired_difference(*outcomes(59, 6, 16, 80))
    assert (reverse.value, reverse.low, reverse.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert reverse.p == found.p
    assert paired_difference(*outcomes(5, 0, 0, 0)).p == 1
    assert paired_difference(*outcomes(0, 20, 4, 176)).is_significant and not found.is_significant
    # Of 2,000 pairs of nets that differ by 4 points, about 95 % have an interval that covers them.
    samples = np.random.default_rng(0).multinomial(150, [0.70, 0.12, 0.08, 0.10], 2000).tolist()
    intervals = [paired_difference(*outcomes(*sample)) for sample in samples]
    assert np.mean([each.low <= 0.04 <= each.high for each in intervals]) == pytest.approx(0.95, abs=0.015)


def test_two_runs_are_compared_on_the_predictions_that_they_kept(
    compare: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [0, 0, 0, 1, 1, 2]
    write_run(tmp_path / "a", kept([0, 1, 2, 1, 0, 0], labels))
    write_run(tmp_path / "b", kept([0, 0, 0, 2, 0, 2], labels, prob=0.8), lr=0.2)
    monkeypatch.chdir(tmp_path)
    out = compare("a", "b")
    assert {path.name for path in out.iterdir()} == {"compare.html", "comparison.csv", "scores.json"}
    table = rows(out / "comparison.csv")
    assert [row["outcome"] for row in table] == [
        "both right",
        "only B right",
        "only B right",
        "only A right",
        "both wrong",
        "only B right",
    ]
    assert table[3] == {"path": "dog/3.png", "label": "dog", "a": "dog", "a_prob": "0.600000", "b": "fox", "b_prob": "0.800000", "outcome": "only A right"}  # fmt: skip
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["a"]["top1"], scores["b"]["top1"]) == pytest.approx((2 / 6, 4 / 6))
    assert [scores[name.lower().replace(" ", "_")] for name in OUTCOMES] == [1, 3, 1, 1]
    assert scores["difference"]["p"] == pytest.approx(stats.binomtest(3, 4).pvalue)
    assert scores["a"]["loss"] == pytest.approx(-(2 * np.log(0.6) + 4 * np.log(0.2)) / 6)
    printed = capsys.readouterr().out
    assert "No clear difference: A classifies 33.33 % and B 66.67 % of 6 images correctly (+33.33 points" in printed
    assert "Of the 4 images that only one of them classifies correctly, B has 3 right" in " ".join(printed.split())
    assert "nothing was evaluated" in printed and "optimizer.lr=0.1" in printed and "optimizer.lr=0.2" in printed
    assert "matched by path" not in printed
    write_run(tmp_path / "c", kept([0, 0, 0, 2, 0, 2], labels), data={"root": "/elsewhere"})
    compare("a", "c")
    printed = " ".join(capsys.readouterr().out.split())
    assert "The images are those of nowhere and of elsewhere, matched by path: they must be the same." in printed
    Path("names.json").write_text('{"dog": "hound"}')
    assert rows(compare("a", "b", "class_names=names.json") / "comparison.csv")[3]["label"] == "hound"
    page = (out / "compare.html").read_text()
    assert "<td>optimizer.lr=0.1</td><td>optimizer.lr=0.2</td>" in re.sub(r">\s+<", "><", page)
    assert "top-5" not in page and "http:" not in page.replace("http://www.w3.org/", "")


def test_only_images_that_trained_neither_net_are_compared(compare: Callable[..., Path], tmp_path: Path) -> None:
    write_run(tmp_path / "a", kept([0, 0, 0], [0, 0, 0]))
    write_run(tmp_path / "b", kept([0, 1, 0], [0, 0, 0], first=1))
    out = compare(tmp_path / "a", tmp_path / "b")
    assert [row["path"] for row in rows(out / "comparison.csv")] == ["cat/1.png", "cat/2.png"]
    text = "The comparison covers the 2 images in both evaluation splits (A: 3, B: 3)"
    assert text in (out / "compare.html").read_text()
    write_run(tmp_path / "c", kept([0, 1, 0], [0, 0, 0], first=3))
    with pytest.raises(ConfigError, match=r"A has 3, such as cat/0\.png, and B 3, such as cat/3\.png; data\.root=DIR"):
        compare(tmp_path / "a", tmp_path / "c")
    for split in ("train", "all", "x"):
        with pytest.raises(ConfigError, match=f"split must be val or test, because images that .*; got '{split}'"):
            compare(tmp_path / "a", tmp_path / "b", f"split={split}")


def test_classes_match_by_name_and_different_ones_are_named() -> None:
    a = kept([0, 1], [0, 1], classes=("cat", "dog"))
    b = kept([2, 1], [1, 2], classes=("ant", "cat", "dog"))
    found = match(a, b, {"cat": "Cat"})
    assert (found.classes, found.labels.tolist(), found.b.predicted.tolist()) == (["Cat", "dog", "ant"], [0, 1], [1, 0])
    assert found.counts == [0, 0, 2, 0] and found.notes == ["Only B has the classes ant."]
    assert found.class_rows()[0] | {"low": 0, "high": 0} == {"class": "Cat", "images": 1, "recall A": 1.0, "recall B": 0.0, "only B right": 0, "only A right": 1, "difference": -1.0, "low": 0, "high": 0}  # fmt: skip
    relabelled = kept([0, 1], [0, 1], classes=("cat", "fox"))
    relabelled.paths[:] = a.paths
    assert match(a, relabelled).notes[0] == "1 image has different labels for A and B and is left out."


def test_the_most_confident_answers_of_b_are_first() -> None:
    a, b = kept([1, 1, 1], [0, 0, 0]), kept([0, 0, 0], [0, 0, 0])
    b.top_probs[:, 0] = [0.5, 0.9, 0.7]
    assert match(a, b).rows("only B right", 2) == [1, 2] and match(b, a).rows("only A right", 5) == [0, 1, 2]


def test_of_a_sweep_the_seeds_of_the_best_setting_are_averaged(compare: Callable[..., Path], tmp_path: Path) -> None:
    labels = [0, 1, 2, 2]
    for seed, (predicted, prob) in enumerate((([0, 1, 0, 0], 0.9), ([0, 1, 2, 2], 0.8), ([0, 1, 2, 2], 0.7))):
        write_run(tmp_path / f"sweep/{seed}", kept(predicted, labels, prob=prob), seed=seed)
    write_run(tmp_path / "sweep/3", kept([0, 0, 0, 0], labels), lr=0.3)
    write_run(tmp_path / "sweep/4", kept(labels, labels), lr=0.4, status="failed")
    (tmp_path / "sweep/sweep.json").write_text("{}")
    side = find_side(str(tmp_path / "sweep"))
    assert [member.path.name for member in side.members] == ["0", "1", "2"]
    assert (
        side.note.startswith("optimizer.lr=0.1 is the best of 2 settings in ") and "3 seeds are averaged" in side.note
    )
    kept_by_seed = [member.kept("val") for member in side.members]
    mean = average([each for each in kept_by_seed if each is not None])
    assert mean.predicted.tolist() == labels
    assert mean.top_probs[:, 0] == pytest.approx([0.8, 0.8, (0.05 + 0.8 + 0.7) / 3, (0.05 + 0.8 + 0.7) / 3], abs=1e-3)
    page = (compare(tmp_path / "sweep", tmp_path / "sweep/3") / "compare.html").read_text()
    assert "A is better" in page or "No clear difference" in page
    assert "A: optimizer.lr=0.1 is the best of 2 settings" in page and "<td>0, 1, 2</td>" in page


def test_folds_are_put_together(compare: Callable[..., Path], tmp_path: Path) -> None:
    for fold in (0, 1):
        predictions = kept([0, 1 - fold], [0, 1], first=2 * fold)
        write_run(tmp_path / f"sweep/{fold}", predictions, data={"folds": 2, "fold": fold})
    whole = kept([0, 0, 0, 1], [0, 1, 0, 1])
    write_run(tmp_path / "one", whole)
    out = compare(tmp_path / "sweep", tmp_path / "one")
    outcomes = {row["path"]: row["outcome"] for row in rows(out / "comparison.csv")}
    assert outcomes == {
        "cat/0.png": "both right",
        "dog/1.png": "only A right",
        "cat/2.png": "both right",
        "dog/3.png": "only B right",
    }
    page = (out / "compare.html").read_text()
    assert "that did not train on it" in page and re.search(r"<td>data.fold</td>\s*<td>0, 1</td>\s*<td></td>", page)


def test_odd_names_are_escaped(compare: Callable[..., Path], tmp_path: Path) -> None:
    classes = ("<b>", "=cmd", "x\u202ey")
    write_run(tmp_path / "a <i>&", kept([0, 1, 2, 0], [0, 1, 2, 2], classes=classes))
    write_run(tmp_path / "b", kept([0, 0, 0, 2], [0, 1, 2, 2], classes=classes), lr=0.5)
    out = compare(tmp_path / "a <i>&", tmp_path / "b")
    page = (out / "compare.html").read_text()
    assert (
        "<b>" not in page.replace("<b>alexlab", "")
        and "<i>" not in page.replace("<i></i>", "")
        and "\u202e" not in page
    )
    assert "&lt;b&gt;" in page and "x\\u202ey" in page
    assert "'=cmd" in (out / "comparison.csv").read_text()


def test_what_cannot_be_compared_is_refused_in_one_sentence(compare: Callable[..., Path], tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", kept([0], [0]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("x")
    write_run(tmp_path / "failed/0", kept([0], [0]), status="failed")
    write_run(tmp_path / "mixed/0", kept([0], [0]))
    write_run(tmp_path / "mixed/1", kept([0], [0]), optimized={"name": "val/loss", "mode": "min"})
    for arguments, message in (
        ([run], "compare needs two runs, sweeps, checkpoints or exported .safetensors files: compare.py A B; got .*/a"),
        ([], "compare.py A B; got nothing"),
        ([run, run, run], "compare.py A B; got "),
        ([run, tmp_path / "no"], "A and B must each be a run folder, .*/no does not exist"),
        ([run, tmp_path / "empty"], "no run found: there is no run.json in or below .*empty"),
        ([run, tmp_path / "failed"], "A and B must have finished runs; no finished run in .*failed has scores"),
        ([run, tmp_path / "mixed"], "mixed have different optimized metrics, val/loss, val/top1; name one of them"),
        ([run, tmp_path / "text.ckpt"], "cannot read the weights"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(*arguments)


def test_checkpoints_without_saved_predictions_are_evaluated(
    compare: Callable[..., Path], trained_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "net.ckpt"
    shutil.copy(trained_run / "checkpoints/best.ckpt", moved)
    out = compare(trained_run, moved, "split=val")
    assert {row["outcome"] for row in rows(out / "comparison.csv")} <= {"both right", "both wrong"}
    printed = capsys.readouterr().out
    assert (
        "No difference" in printed
        and "Evaluated: B; the other's predictions are those that its run has kept" in printed
    )
    page = (out / "compare.html").read_text()
    assert "does not record the run" not in page and "<h3>Settings</h3>" not in page
    first = rows(out / "comparison.csv")
    # The same folder, given explicitly, must not bring in the images that trained the nets.
    assert [row["path"] for row in rows(compare(trained_run, moved, f"data.root={images}", "split=val") / "comparison.csv")] == [row["path"] for row in first]  # fmt: skip
    assert len(rows(compare(moved, trained_run, "views=ten_crop") / "comparison.csv")) == 7, "the test split"
    capsys.readouterr()
    fewer = [row["path"] for row in first][:-2]
    cut = read_predictions(trained_run, "val")
    assert cut is not None
    kept_rows = [row for row, path in enumerate(cut.paths) if path in fewer]
    arrays = {field.name: getattr(cut, field.name) for field in fields(cut) if field.name != "classes"}
    part = replace(cut, **{name: array[kept_rows] for name, array in arrays.items() if array is not None})
    write_run(tmp_path / "fewer", part)
    compare(tmp_path / "fewer", moved, "split=val")
    note = f"The comparison covers the {len(fewer)} images in both evaluation splits (A: {len(fewer)}, B: {len(first)})"
    assert note in " ".join(capsys.readouterr().out.split()), "B is evaluated on the common images only"
    with pytest.raises(ConfigError, match="split must be val or test"):
        compare(trained_run, moved, f"data.root={images}", "split=train")
    for name in ("0", "1"):
        shutil.copytree(trained_run, tmp_path / "sweep" / name)
    averaged = rows(compare(moved, tmp_path / "sweep", "views=ten_crop") / "comparison.csv")
    assert {row["outcome"] for row in averaged} <= {"both right", "both wrong"} and len(averaged) == 7
    assert [float(row["a_prob"]) for row in averaged] == pytest.approx(
        [float(row["b_prob"]) for row in averaged], abs=1e-5
    )


def test_files_record_the_run_that_trained_them(
    compare: Callable[..., Path],
    train: Callable[..., float | None],
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("alexlab.tasks.rank.versions", lambda: {"torch": "9.9"})
    train("optimizer.lr=0.05", "seed=7", "model.norm=batch")
    moved = tmp_path / "moved.ckpt"
    shutil.copy(tmp_path / "run/checkpoints/best.ckpt", moved)
    record = torch.load(moved, weights_only=True)["alexlab"]
    assert record["data"].keys() == {"counts", "fingerprint", "sample"}
    assert record["data"]["counts"] == {"train": 24, "val": 11, "test": 7}
    assert record["code"].keys() == {"commit", "dirty"}
    exported = tmp_path / "net.safetensors"
    write_safetensors(load_checkpoint(str(moved), device="cpu"), exported, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    for file in (moved, exported):
        page = (compare(trained_run, file, "split=val") / "compare.html").read_text()
        for row in (
            ("optimizer.lr", "optimizer.lr=0.001", "optimizer.lr=0.05"),
            ("seed", "1", "7"),
            ("version of torch", torch.__version__.partition("+")[0], "9.9"),
        ):
            assert re.search(r"\s*".join(f"<td[^>]*>{re.escape(cell)}[^<]*</td>" for cell in row), page), row
        assert "<td>machine</td>" not in page, "a checkpoint does not record it"
        assert not re.search(r"<td[^>]*>data.fold</td>", page)
    content = torch.load(moved, weights_only=True)
    content["alexlab"]["versions"] = {"torch": 1}
    torch.save(content, moved)
    with pytest.raises(ConfigError, match="versions must be an object of strings"):
        compare(trained_run, moved, "split=val")


def test_differences_list_the_values_of_all_runs(compare: Callable[..., Path], tmp_path: Path) -> None:
    for seed, torch_version in enumerate(("2.14", "2.15", "2.15")):
        folder = tmp_path / f"sweep/{seed}"
        write_run(folder, kept([0, 1, 1], [0, 1, 2]), seed=seed, versions={"torch": torch_version})
    write_run(
        tmp_path / "one", kept([0, 1, 2], [0, 1, 2]), versions={"torch": "2.15"}, hardware={"cpu": "M1", "cores": 8}
    )
    page = (compare(tmp_path / "sweep", tmp_path / "one") / "compare.html").read_text()
    assert re.search(r"<td>version of torch</td>\s*<td>2.14; 2.15</td>\s*<td>2.15</td>", page)
    record = read_run(tmp_path / "one").record
    others = [{**record, "data": {"counts": {"val": 3}, "fingerprint": text}} for text in ("a" * 32, "b" * 32)]
    assert record_differences([record], [record]) == []
    assert record_differences([record], others[:1]) == [], "a record without a fingerprint may be of the same images"
    assert record_differences(others[:1], others) == [
        RecordDifference(
            "images", "val 3, fingerprint aaaaaaaa", "val 3, fingerprint aaaaaaaa; val 3, fingerprint bbbbbbbb"
        )
    ]
    dirty = {**record, "code": {"commit": None, "dirty": True}}
    assert record_differences([dirty], [dirty]) == [RecordDifference("code", *["unknown commit with changes"] * 2)]


def test_pictures_show_the_true_class_and_both_answers(
    compare: Callable[..., Path], trained_run: Path, tmp_path: Path
) -> None:
    config, own = read_run(trained_run).record["config"], read_predictions(trained_run, "val")
    assert own is not None
    for name, predicted in (("a", (own.labels + 1) % 3), ("b", own.labels)):
        top = np.stack([predicted, (predicted + 1) % 3, (predicted + 2) % 3], 1)
        predictions = replace(own, top_classes=top, probs=None)
        write_run(tmp_path / name, predictions, data=config["data"], choices={})
    page = (compare(tmp_path / "a", tmp_path / "b", "num_images=4") / "compare.html").read_text()
    assert page.count('src="data:image/') == 4 and "Images that only B classifies correctly (4 of 11)" in page
    assert re.search(r"<span>true (\w+)</span><span>A \w+ \(p 0\.\d\d\)</span><span>B \1 \(p 0\.\d\d\)</span>", page)
    assert "B is better" in page and "p = 0.0010" in page


def test_differences_of_code_are_unified_diffs(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    commits = []
    for text in ("old = 1", "new = 2"):
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src/x.py").write_text(f"{text}\n")
        git("add", "src")
        git("commit", "-qm", text)
        commits.append(git("rev-parse", "HEAD"))
    runs = []
    for number, commit in enumerate([*commits, "--output=evil", commits[0]]):
        folder = write_record(tmp_path / str(number), code={"commit": commit, "dirty": number == 1})
        (folder / "code.diff").write_text("+uncommitted\n")
        runs.append(read_run(folder))
    found = dict(code_differences(runs[:2], code_dir=tmp_path))
    between, own = found
    assert between == f"from {commits[0][:12]} to {commits[1][:12]}" and "-old = 1\n+new = 2" in found[between]
    assert (own, found[own]) == ("uncommitted changes of B", "+uncommitted\n")
    assert code_differences([runs[0], runs[2]], code_dir=tmp_path) == []
    assert code_differences([runs[0], runs[3]], code_dir=tmp_path) == [] and not (tmp_path / "evil").exists()
