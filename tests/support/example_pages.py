"""One page of each kind, with long names and values and without a training."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from alexlab.data.audit import label_report
from alexlab.data.audit import report as check
from alexlab.data.audit.audit import AuditResult
from alexlab.data.audit.duplicates import Pair
from alexlab.data.audit.label_errors import LabelErrors
from alexlab.data.image_file import DEFAULT_DECODING
from alexlab.data.listing import Finding
from alexlab.data.manifest import ManifestRow
from alexlab.data.splits import Split
from alexlab.inference.compare.comparison import Comparison, SidePredictions
from alexlab.inference.compare.report import Context
from alexlab.inference.compare.report import write_page as write_comparison
from alexlab.inference.compare.sides import Member, Side
from alexlab.inference.predict import FilePrediction
from alexlab.inference.prediction_files import PredictionWriter
from alexlab.inference.predictions import Predictions
from alexlab.inference.report import Evaluation, write_page
from alexlab.pages.image_grid import CaptionedImage, ImageGrid
from alexlab.pages.plots import new_figure, svg
from alexlab.pages.render import Interval, Link, SortableCell, render
from alexlab.papers.estimates import AGREES, DIFFERS, UNDECIDED, Estimate
from alexlab.papers.measurement import Measurement, points
from alexlab.papers.page import NOT_RUN, SKIPPED, ClaimResult, render_reproduction
from alexlab.records.cross_validation import OutOfFold
from alexlab.records.plots import Panel
from alexlab.records.record import default_record
from alexlab.records.results import RunResult
from alexlab.records.run import Run
from alexlab.tasks.reproduce import make_reproduction
from support.runs import plain

LONG = "augmentation=random_resized_crop_with_color_jitter, model.norm=local_response_normalization, data.root=/a/very/long/path"
LINK = Link("12_model-alexnet_quarter_optimizer-adamw_seed-1_augmentation-none", "x/")
WORD = "z" * 150  # nothing to break it at


def report_page(num_settings: int) -> str:
    """Return a report with long names and values, and `num_settings` settings."""
    figure = new_figure(figsize=(5.2, 3.3))
    axes = figure.subplots()
    axes.plot([1, 2, 3], [0.1, 0.7, 0.9], "o-", gid="s0")
    axes.set(xlabel="Epoch", ylabel="Top-1 accuracy")
    plots = [(f"Effect of {LONG[:40]}", LONG, svg(figure, "effect")) for _ in range(5)]
    columns = [
        "model",
        "Runs",
        "Top-1",
        "95 % interval",
        "Difference to best",
        "Loss",
        "Training, s",
        "Parameters",
        "Status",
    ]
    difference = SortableCell(-0.1, "-10.00 (-12.00 to -8.00)")
    row = [LONG, 3, 0.5, Interval(0.4, 0.5, 0.6, (0, 1)), difference, 2.3, 11_000.5, 57_000_000, "3 finished"]
    rows = [row] * num_settings
    return render(
        "report.html",
        title=f"Comparison of {LONG}: 300 runs",
        kind="Report",
        score=("97.31", "± 0.25 %", "Validation top-1, mean ± standard deviation of 3 runs"),
        verdict=f"No clear winner among 2 settings: {LONG} (0.9731), {LONG} (0.9700) do not differ significantly in val top-1.",
        notes=["Differences to the best are those on the same 270 validation images, tested by McNemar's exact test."],
        facts={"Command": f"train.py -m {LONG}", "Folder": [LINK], "Parameters": 57_000_000, "Path": WORD},
        settings={"columns": columns, "rows": rows},
        setting_classes=["best", *[""] * (num_settings - 1)],
        colors=[0, *[None] * (num_settings - 1)],
        command=f"python src/train.py {LONG} {WORD}",
        series=[LONG] * min(10, num_settings),
        num_settings=num_settings,
        plots=plots,
        run_columns=["Run", *columns, "Files"],
        run_rows=[[[LINK], *row, [LINK, LINK]] for row in rows],
        run_classes=[""] * num_settings,
        failures=[([LINK, LINK], "failed", f"DataError: {WORD}")],
    )


def index_page() -> str:
    """Return the page of all runs."""
    run = [[LINK], "failed", 0.5, 0.4, 90, 11_000.5, "2026-11-27 08:00", LONG, f"DataError: {WORD}", [LINK, LINK]]
    columns = ["run", "status", "best val score", "test top-1", "epochs", "time s", "started", "tags", "note", "files"]
    figure = new_figure(figsize=(5.2, 3.3))
    return render(
        "index.html",
        title=f"All runs in {WORD}",
        kind="runs, sweeps and pages",
        details={"runs": "123 finished, 4 failed", "sweeps": 12, "pages": 34},
        list_command=f"python src/train.py runs {WORD}",
        curves=[(WORD, svg(figure, "curves"), "finished, val top-1 0.9")] * 2,
        tables=[("Runs", columns, [run] * 3, ["failed", "running", ""])],
    )


def evaluation_page(folder: Path, *, kind: str, num_classes: int) -> str:
    """Return the page of an evaluation, with photographs and with drawings as wide as those of `explain.py`."""
    random = np.random.default_rng(0)
    names = [f"{number} {WORD if number % 2 else LONG}"[:60] for number in range(num_classes)]
    labels = np.arange(400) % num_classes
    probs = random.dirichlet(np.full(num_classes, 0.3), 400).astype(np.float32)
    top = np.argsort(-probs)[:, :5]
    predictions = Predictions(
        split=Split("/data", names, [f"{WORD}/{number}.jpg" for number in range(400)], labels),
        indices=np.arange(400),
        labels=labels,
        top_classes=top,
        top_probs=np.take_along_axis(probs, top, 1),
        label_prob=probs[np.arange(400), labels],
        metrics={"loss": 1.2, "top1": float((top[:, 0] == labels).mean()), "top5": 0.9, "count": 400},
    )
    details = {"checkpoint": WORD, "data": LONG, "split": "test", "views": "center"}
    photograph = CaptionedImage(random.integers(0, 255, (100, 180, 3), dtype=np.uint8), [WORD, LONG])
    drawing = CaptionedImage(random.integers(0, 255, (90, 900, 3), dtype=np.uint8), [LONG], scale=2)
    grids = [
        ImageGrid("Most confident mistakes", LONG, [[photograph, photograph]] * 4),
        ImageGrid("Feature maps", LONG, [[drawing]]),
    ]
    path = folder / "evaluation.html"
    write_page(Evaluation(predictions, names, details), path, f"alexnet on {WORD}", kind=kind, grids=grids)
    return path.read_text(encoding="utf-8")


def compare_page(folder: Path) -> str:
    """Return the page of a comparison of two runs that differ in their settings and code."""
    runs = []
    for number, name in enumerate((WORD, LONG)):
        config = {"seed": number, "note": name, "optimizer": {"name": name}, "model": {"name": name}}
        code = {"commit": str(number) * 40, "dirty": True}
        record = default_record() | {"config": config, "choices": {"model": name}, "code": code}
        run_dir = folder / str(number)
        run_dir.mkdir()
        (run_dir / "code.diff").write_text(f"+{name}\n" * 100)
        runs.append(RunResult(run_dir, record, []))
    random = np.random.default_rng(0)
    labels = np.arange(400) % 40
    a, b = (
        SidePredictions(
            np.where(random.random(400) < 0.7, labels, 0), random.random(400), random.random(400), labels < 9
        )
        for _ in range(2)
    )
    classes = [f"{number} {WORD if number % 2 else LONG}"[:60] for number in range(40)]
    found = Comparison([f"{number}.jpg" for number in range(400)], classes, labels, a, b, [f"Only A has {WORD}."])
    photograph = CaptionedImage(random.integers(0, 255, (100, 180, 3), dtype=np.uint8), [WORD, LONG])
    sides = [Side(name, [Member(run.folder, run)], LONG) for name, run in zip((WORD, LONG), runs, strict=True)]
    path = folder / "compare.html"
    grids = [ImageGrid("Images that only B classifies correctly (4)", LONG, [[photograph]] * 4)]
    write_comparison(found, Context(sides, [[], []]), path, grids)
    return path.read_text(encoding="utf-8").replace("<details>", "<details open>")


def reproduce_page() -> str:
    """Return the page of a reproduction, with one claim of each verdict."""
    config = plain("data.root=.", name="reproduce")
    found = make_reproduction(Run(config=config, dir=Path("."), choices={"paper": "alexnet2012"}))
    estimate, random = Estimate(0.012, -0.003, 0.027), np.random.default_rng(0)
    photograph = CaptionedImage(random.integers(0, 255, (96, 96, 3), dtype=np.uint8), [WORD, LONG])
    grid = ImageGrid("Top-5 predictions and nearest training images", LONG, [[photograph] * 7] * 2)
    panel = Panel("Top-1 accuracy", LONG, lambda axes: axes.plot([0, 1], [0.6, 0.7]), height=2.6)
    rows = [
        ClaimResult(name, claim, None if verdict is NOT_RUN else Measurement(estimate, verdict, points(estimate), LONG, [panel], [grid]), verdict, LONG)
        for (name, claim), verdict in zip(found.claims.items(), (AGREES, DIFFERS, UNDECIDED, NOT_RUN, SKIPPED), strict=False)
    ]  # fmt: skip
    return render_reproduction(found, rows, [])


def gallery_page(folder: Path) -> str:
    """Return the gallery of predictions."""
    path = write_photograph(folder / f"{WORD}.png")
    model: Any = SimpleNamespace(description=LONG, label=WORD, names=[WORD, LONG, "cat"], decoding=DEFAULT_DECODING)
    with PredictionWriter(folder, model, WORD, gallery_limit=6) as writer:
        for number in range(8):
            writer.write(FilePrediction(str(path), (number % 3, 2, 1), (0.7, 0.2, 0.1)))
    return (folder / "gallery.html").read_text(encoding="utf-8")


def check_page(folder: Path) -> str:
    """Return the page of `prepare.py action=check`."""
    names = [write_photograph(folder / f"{number}{WORD}.png").name for number in range(4)]
    result = AuditResult(
        str(folder),
        classes=[WORD, LONG],
        counts={split: {WORD: 1000, LONG: 2000} for split in ("train", "val", "test")},
        findings=[
            Finding("unreadable_empty", WORD, "is empty"),
            Pair("duplicate", names[0], names[1]).finding(),
        ],
        notes=[f"3 files were left out: {WORD}"],
        rows=[ManifestRow(name, label=WORD) for name in names],
        sizes=Counter({"12000 x 9000": 3, "500 x 375": 20}),
        modes=Counter({"RGB": 20}),
        mean=[0.1, 0.2, 0.3],
        std=[0.1, 0.2, 0.3],
        pairs=[Pair("duplicate", names[0], names[1])],
    )
    path = folder / "check.html"
    check.write_page(result, path)
    return path.read_text(encoding="utf-8")


def labels_page(folder: Path) -> str:
    """Return the page of `prepare.py action=labels`."""
    names = [write_photograph(folder / f"{number}{WORD}.png").name for number in range(4)]
    labels, probs = np.array([0, 1, 2, 0]), np.full((4, 3), 1 / 3)
    joint = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 0]])
    runs: Any = [SimpleNamespace(num_folds=5)]
    predictions = OutOfFold(names, [WORD, LONG, "cat"], labels, probs, runs)
    errors = LabelErrors(np.arange(4), np.array([1, 2, 0, 2]), np.full(4, 0.1), joint)
    path = folder / "labels.html"
    report = label_report.LabelReport(predictions, errors, str(folder))
    label_report.write_page(report, path, decoding=DEFAULT_DECODING, commands=[f"python src/prepare.py {LONG} {WORD}"])
    return path.read_text(encoding="utf-8")


def demo_page() -> str:
    """Return the page of the demo after a prediction."""
    predictions = [{"class": name, "prob": 0.3} for name in (WORD, LONG, "cat")]
    image = CaptionedImage(np.zeros((320, 320, 3), np.uint8), [], scale=1).url
    answer = {"predictions": predictions, "images": [("input of the network", image), (f"evidence for {WORD}", image)]}
    page = render("demo.html", title=f"{LONG}, 1,000 classes", max_mb="10", max_bytes=10_000_000)
    return f"{page}<script>fetch = async () => ({{ok: true, json: async () => ({json.dumps(answer)})}}); predict({{size: 1}});</script>"


def write_photograph(path: Path) -> Path:
    """Write an image of the format of a photograph."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(path)
    return path
