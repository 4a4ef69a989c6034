"""Untrusted names are printed literally, on one line, wherever they appear."""

import io
import json
import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra.core.utils import configure_log
from markupsafe import escape
from omegaconf import read_write
from PIL import Image
from rich.console import Console

from alexlab.cli import command
from alexlab.cli.exits import exit_on_error
from alexlab.data.audit import report as audit_report
from alexlab.data.audit.audit import audit_dataset
from alexlab.data.dataset import ViewReader
from alexlab.data.image_file import Decoding
from alexlab.data.splits import Split
from alexlab.errors import ConfigError, DataError, ImageError
from alexlab.inference.predict import FilePrediction
from alexlab.inference.prediction_files import PredictionWriter
from alexlab.inference.predictions import Predictions
from alexlab.inference.report import Evaluation, summary_tables, write_evaluation
from alexlab.inference.report import write_page as write_evaluation_page
from alexlab.output.csv_files import unescape_formula
from alexlab.output.escape import (
    LineFormatter,
    escape_markdown,
    plot_label,
    print_line,
    shortened,
    shown,
    shown_lines,
    unescape_markdown,
    writable,
)
from alexlab.output.progress import progress_bar
from alexlab.output.terminal import Terminal
from alexlab.pages.image_grid import CaptionedImage, ImageGrid
from alexlab.pages.plots import png
from alexlab.records.report import write_report
from alexlab.records.run import Run
from alexlab.sweeps.jobs import FAILED, Job
from alexlab.sweeps.table import JobTable
from alexlab.tasks import report
from support.runs import ROOT, composed, rows
from support.terminal import open_terminal

pytestmark = pytest.mark.scenario(name="escaping")

# Names, and how they are printed.
NAMES = {
    "[red]x": "[red]x",
    "[/]": "[/]",
    "a\nb": r"a\nb",
    "a\r\tb": r"a\r\tb",
    "\x1b[31mred": r"\x1b[31mred",
    "\x9b31m": r"\u009b31m",
    "\u202egpj.exe": r"\u202egpj.exe",
    "ze\u200bro\u2066\ufeff": r"ze\u200bro\u2066\ufeff",
    "two\u2028lines": r"two\u2028lines",
    ":smile:": ":smile:",
    "$x^2$": "$x^2$",
    r"$\frac": r"$\frac",
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "=cmd()": "=cmd()",
    "@home": "@home",
    "_x": "_x",
    "back\\slash `*|*` _y_": "back\\slash `*|*` _y_",
    "\ud800": r"\ud800",
    os.fsdecode(b"\xff"): r"\xff",
}
UNCHANGED = ("Katze", "кот", "猫", "قطة", "می‌خواهم", "क्‍ष", "🐱", "👩‍🔬", "👩🏽‍🚀", "❤️‍🔥", "a b", "100 %")


def hidden(text: str, *, lines: bool = True) -> list[str]:
    """Return the invisible characters of a text; its line breaks are among them if `lines` is false."""
    invisible = [each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    return [each for each in invisible if each != "\n" or not lines]


@pytest.mark.parametrize(("name", "expected"), NAMES.items(), ids=ascii)
def test_hidden_characters_become_escapes(name: str, expected: str) -> None:
    assert shown(name) == shown(shown(name)) == expected
    assert not hidden(expected, lines=False)
    assert unescape_markdown(escape_markdown(name)) == expected
    writable(name).encode("utf-8")


@pytest.mark.parametrize("name", UNCHANGED)
def test_letters_of_all_scripts_and_emoji_are_not_changed(name: str) -> None:
    assert shown(name) == name


def test_joiners_between_other_letters_are_escaped() -> None:
    assert shown("c\u200dat ж\u200cд \u200d🐱\u200d") == r"c\u200dat ж\u200cд \u200d🐱\u200d"


def test_only_characters_that_utf8_cannot_encode_are_escaped_in_files() -> None:
    assert writable("a\nb \u202e \udcff \ud800 é") == "a\nb \u202e \\xff \\ud800 é"


def test_markup_is_escaped_in_markdown() -> None:
    text = escape_markdown("# [a](javascript:b) <i> |*_x_*| `c` a_b optimizer.lr=-1 &lt; ~~d~~ $e$ !")
    assert text == r"\# \[a\](javascript:b) \<i\> \|\*\_x\_\*\| \`c\` a_b optimizer.lr=-1 \&lt; \~\~d\~\~ \$e\$ !"


def test_errors_have_one_line_per_argument() -> None:
    name = "a\nb\x1b[31m"
    assert str(DataError(f"there is no {name}")) == r"there is no a\nb\x1b[31m"
    error = ConfigError("two jobs cannot run:", f"job {name}", "job 2")
    assert str(error).split("\n") == ["two jobs cannot run:", r"job a\nb\x1b[31m", "job 2"]
    unreadable = ImageError(f"cannot read {name}", path=name, code="x", reason=f"{name} is none", detail=name)
    assert (unreadable.path, unreadable.reason, unreadable.detail) == (name, f"{shown(name)} is none", shown(name))


def test_an_error_from_a_loader_process_is_its_last_line() -> None:
    message = "cannot read the image alexlab.errors.ImageError: x.jpg: it is empty"
    text = f"Caught ImageError in DataLoader worker process 0.\nOriginal Traceback:\n  ...\nalexlab.errors.ImageError: {message}\n"
    assert str(ImageError(text)) == message


def test_print_line_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        print_line(f"run folder: {name}")
    assert capsys.readouterr().out.splitlines() == [f"run folder: {each}" for each in NAMES.values()]


@pytest.mark.parametrize("part", ["job_logging", "hydra_logging"])
def test_log_records_are_one_line(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before, out = root.handlers[:], io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    config = composed(f"hydra.run.dir={tmp_path}")
    with read_write(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(tmp_path)
    try:
        configure_log(config.hydra[part])
        for name in NAMES:
            root.info("the class %s", name)
        try:
            raise ValueError("\x1b[31mforged")
        except ValueError as error:
            root.exception("a\n%s", error)
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers = before
    texts = [out.getvalue(), *(path.read_text() for path in tmp_path.glob("*.log"))]
    assert len(texts) == (2 if part == "job_logging" else 1)
    for text in texts:
        lines = text.splitlines()
        assert [line.partition("the class ")[2] for line in lines[: len(NAMES)]] == [*NAMES.values()]
        assert lines[len(NAMES)].endswith(r"a\n\x1b[31mforged") and lines[len(NAMES) + 1].startswith("Traceback")
        assert lines[-1] == r"ValueError: \x1b[31mforged" and not hidden(text)


def test_tracebacks_keep_their_lines() -> None:
    assert LineFormatter("%(message)s").format(logging.makeLogRecord({"msg": "a\tb\x00"})) == r"a\tb\x00"
    assert shown_lines("a\n\x1b\n") == "a\n\\x1b\n"


def test_hydra_errors_are_printed_without_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", "seed.\x1b[31m\u202eb=1"])
    with pytest.raises(SystemExit) as caught:
        command.run_command("train")
    assert caught.value.code == 1
    text = capsys.readouterr().err
    assert r"\x1b[31m\u202eb" in text and not hidden(text)
    assert not [*tmp_path.iterdir()]


def printed(table: Any) -> str:
    """Return a table as a wide terminal shows it."""
    out = io.StringIO()
    Terminal(file=out, width=500).print(table)
    return out.getvalue()


def test_tables_of_jobs_print_names_literally(tmp_path: Path) -> None:
    table = JobTable()
    for name in NAMES:
        table.jobs.append(Job(0, [f"x={name}", f"all={name}"], tmp_path, {}, state=FAILED, cause=f"no {name}"))
    text = printed(table.render())
    for expected in NAMES.values():
        assert f"x={expected}" in text and f"no {expected}" in text
    assert len([line for line in text.splitlines() if "failed" in line and "│" in line]) == len(NAMES)
    common = [f"all={name}" for name in NAMES]
    table.jobs = [Job(number, [f"seed={number}", *common], tmp_path, {}) for number in range(2)]
    caption = "".join(printed(table.render()).split())  # it is folded
    assert all("".join(f"all={expected}".split()) in caption for expected in NAMES.values())
    assert not hidden(text + caption)


def test_progress_bars_print_titles_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch, width=200)
    bar, out = progress_bar(), io.StringIO()
    assert not bar.disable
    for name in NAMES:
        bar.add_task(shown(name))
    Console(file=out, width=200, color_system=None).print(bar.get_renderable())
    assert [line[: len(each)] for line, each in zip(out.getvalue().splitlines(), NAMES.values(), strict=True)] == [
        *NAMES.values()
    ]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Return folder, tables and page of an evaluation whose classes and files have all the names."""
    names, out = [*NAMES, "last"], tmp_path_factory.mktemp("evaluation")
    labels = np.arange(2 * len(names)) % len(names)
    top = np.stack([(labels + 1) % len(names), labels], 1)
    top[: len(names)] = top[: len(names), ::-1]
    paths = [f"{name}.jpg" for name in names] * 2
    split = Split("", names, paths, labels)
    probs = np.full(top.shape, 0.5, np.float32)
    found = Predictions(
        split, np.arange(len(labels)), labels, top, probs, probs[:, 0], {"loss": 1.0, "top1": 0.5, "top5": 1.0}
    )
    evaluation = Evaluation(found, names, {"data": "".join(NAMES), "split": "val"})
    write_evaluation(evaluation, out)
    page = out / "evaluation.html"
    write_evaluation_page(evaluation, page, "title " + "".join(NAMES))
    return out, "".join(map(printed, summary_tables(evaluation))), page.read_text(encoding="utf-8")


def test_evaluations_print_classes_literally(evaluation: tuple[Path, str, str]) -> None:
    _, tables, page = evaluation
    assert not hidden(tables) and not hidden(page)
    for expected in NAMES.values():
        assert f"│ {expected} " in tables
        assert f"<td>{escape(expected)}</td>" in page
    assert "<script>alert" not in page


def test_evaluations_keep_names_in_csv_files(evaluation: tuple[Path, str, str]) -> None:
    out, *_ = evaluation
    names = [writable(name) for name in NAMES]
    columns = (("classes.csv", "class"), ("predictions.csv", "label"), ("confusion.csv", "label \\ predicted"))
    for file, column in columns:
        with (out / file).open(newline="", encoding="utf-8") as opened:
            import csv

            cells = [row[column] for row in csv.DictReader(opened)]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]
        assert [unescape_formula(cell) for cell in cells[: len(names)]] == names
    header = (out / "confusion.csv").read_bytes()
    assert b"'=cmd()" in header and b",=cmd()" not in header


def test_plots_print_names_literally() -> None:
    from matplotlib.figure import Figure

    from alexlab.inference.plots import MAX_NAME, confusion_plot

    names = [*NAMES]
    figure = confusion_plot(np.eye(len(names), dtype=np.int64), names)
    png(figure)  # raises on an invalid formula
    drawn = [label.get_text().strip().replace(r"\$", "$") for label in figure.axes[0].get_yticklabels()]
    assert drawn == [shortened(text, MAX_NAME).strip() for text in NAMES.values()]
    image = CaptionedImage(np.zeros((70, 900, 3), np.uint8), names)
    figure = ImageGrid("".join(names), names[0], [[image]]).figure()
    png(figure)
    drawn = [text.get_text() for text in figure.axes[0].texts[-len(names) :]]
    assert drawn == [plot_label(name) for name in names]
    axes = Figure().subplots()
    for name in names:
        axes.plot([0, 1], [0, 1], label=plot_label(name))
    assert len(axes.legend().get_texts()) == len(names), "none is hidden"


def write_run(folder: Path, name: str, *, top1: float | None) -> None:
    """Write a run folder with an untrusted name in its record."""
    folder.mkdir(parents=True)
    best = None if top1 is None else {"top1": top1, "top5": 1.0, "loss": 0.5, "epoch": 1}
    record = {
        "status": "failed" if top1 is None else "finished",
        "reason": f"because of {name}",
        "seed": 1,
        "choices": {"optimizer": name},
        "config": {"optimizer": {name: name}},
        "best": best,
        "scores": {"train_s": 1.0},
        "parameters": 10,
        "data": {"counts": {"val": 10}},
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "train.log").write_text("")
    (folder / "metrics.csv").write_text("epoch,val/top1,val/loss\n1,0.5,0.5\n")


def test_reports_print_untrusted_runs_literally(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(NAMES):
        write_run(tmp_path / "runs" / f"{number} [b]\n\x1b", name, top1=number / 100)
        write_run(tmp_path / "runs" / f"{number} failed", name, top1=None)
    report.main(Run(config={"runs": [tmp_path / "runs"], "out": None, "tags": []}, dir=tmp_path))
    output = capsys.readouterr().out
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert not hidden(page) and not hidden(text) and not hidden(output)
    for name, expected in NAMES.items():
        assert f"<td>{escape(expected)}</td>" in page and f"because of {escape(expected)}" in page
        assert f"| {escape_markdown(name)} | 1 |" in text
        assert f"| {expected} | 1 |" in output and f"failed: failed: because of {expected}\n" in output
    assert "<script>alert" not in page
    lines = text.splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == len(NAMES) + 2, "one line per row"
    table = rows(tmp_path / "report.csv")
    assert {unescape_formula(row["optimizer"]) for row in table} == set(map(writable, NAMES))
    assert "'=cmd()" in {row["optimizer"] for row in table}
    assert write_report([str(tmp_path / "runs")], tmp_path / "again").is_file()


FILES = [name.replace("/", "_") for name in NAMES if name != "\ud800"]


@pytest.fixture(scope="module")
def strange_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes and their images with such names; one image of each class is unreadable."""
    root = tmp_path_factory.mktemp("images")
    for label, folder in enumerate(("[red]a\nb", "@home")):
        (root / folder).mkdir()
        for number, name in enumerate(FILES):
            pixels = np.random.default_rng(len(FILES) * label + number).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{name}.png")
        (root / folder / "bad\x1b\n.png").write_bytes(b"nothing")
    return root


def test_audits_print_names_literally_and_keep_them_in_manifests(strange_images: Path, tmp_path: Path) -> None:
    from alexlab.data.manifest import read_manifest, write_manifest

    findings = audit_dataset(str(strange_images))
    audit_report.write_page(findings, tmp_path / "check.html")
    write_manifest(findings.rows, tmp_path / "manifest.csv")
    text, page = (
        "".join(map(printed, audit_report.summary_tables(findings))),
        (tmp_path / "check.html").read_text(encoding="utf-8"),
    )
    assert r"[red]a\nb" in text and r"bad\x1b\n.png" in text and not hidden(text)
    assert r"<code>@home/bad\x1b\n.png</code>" in page and not hidden(page) and "<script>alert" not in page
    assert [*read_manifest(tmp_path / "manifest.csv", str(strange_images)).values()] == findings.rows
    again = audit_dataset(str(strange_images), str(tmp_path / "manifest.csv"))
    assert not [problem for problem in again.findings if problem.code.startswith("manifest")]
    assert b"\r\n'@home/" in (tmp_path / "manifest.csv").read_bytes()


def test_predictions_print_names_literally_and_keep_them_in_files(
    strange_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = [*NAMES]
    paths = [os.path.join(strange_images, "@home", f"{name}.png") for name in FILES]
    trained: Any = SimpleNamespace(names=classes, description="a net", label="net\x1b.ckpt", decoding=Decoding())
    with PredictionWriter(tmp_path, trained, "<script>alert\x1b", gallery_limit=100) as writer:
        for number, path in enumerate(paths):
            writer.write(FilePrediction(path=path, classes=(number, len(classes) - 1), probs=(0.6, 0.4), error=None))
        bad = ImageError("no", path="-bad\n\x1b", code="x", reason="=1\x1b")
        writer.write(FilePrediction(bad.path, error=bad))
    writer.print_summary()
    printed, page = capsys.readouterr().out, (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert not hidden(printed) and not hidden(page) and "<script>alert" not in page
    table = rows(tmp_path / "predictions.csv")
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().rstrip().split("\n")]
    for row, line, name, path in zip(table, lines, classes, paths, strict=False):
        assert unescape_formula(row["class"]) == line["predictions"][0]["class"] == writable(name)
        assert f"<b>{escape(shown(name))} 0.600</b>" in page
        assert row["path"] == line["path"] == writable(path)
    assert rows(tmp_path / "failed.csv") == [{"path": "'-bad\n\x1b", "code": "x", "reason": r"'=1\x1b"}]


def test_the_demo_returns_printable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("starlette")
    import torch

    from alexlab.inference import demo

    classes = [*NAMES]
    probs = torch.linspace(0, 1, len(classes))[None]
    trained: Any = SimpleNamespace(
        names=classes,
        members=(),
        inference=SimpleNamespace(probs=lambda images: probs),
        single=SimpleNamespace(net=torch.nn.Conv2d(3, 1, 1)),
        reader=lambda: ViewReader(None, Decoding()),
    )
    monkeypatch.setattr(demo, "grad_cam", lambda *_: torch.zeros(1, 8, 8))
    monkeypatch.setattr(demo, "TOP_K", len(classes))
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    result = demo.predict_image(trained, content.getvalue())
    assert [each["class"] for each in result["predictions"]] == [*NAMES.values()][::-1]


def lint_direct_output() -> str:
    """Return what ruff reports for a module that prints without `alexlab.output`."""
    code = "import csv\nimport sys\n\nfrom rich.console import Console\n\nprint(1)\nConsole()\ncsv.writer(sys.stdout)\n"
    options = [
        "check",
        "--select",
        "T20,TID251",
        "--output-format",
        "concise",
        "--stdin-filename",
        "src/alexlab/new.py",
        "-",
    ]
    done = subprocess.run(["ruff", *options], input=code, capture_output=True, text=True, cwd=ROOT)
    return done.stdout


def test_the_linter_forbids_direct_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    found = lint_direct_output()
    assert (
        "T201" in found
        and "alexlab.output.terminal.Terminal" in found
        and "alexlab.output.csv_files.write_csv" in found
    )


def test_commands_print_errors_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise ConfigError("two jobs:", "a\nb")
    assert (ended.value.code, capsys.readouterr().err) == (1, "two jobs:\na\\nb\n")
