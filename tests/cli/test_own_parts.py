"""Parts of the user: the folder that `alexlab new` writes and every example of docs/extending.md train."""

import contextvars
import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import alexlab
from alexlab.__main__ import main
from alexlab.cli.new import write_folder
from alexlab.errors import ConfigError
from support.commands import run
from support.pages import blocks

pytestmark = pytest.mark.slow
CPU = ("trainer.accelerator=cpu", "trainer.precision=32-true")


def test_a_new_folder_trains_at_once_and_is_needed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["alexlab", "new", "my"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    assert "train it: alexlab train --config-dir my experiment=example" in capsys.readouterr().out
    write_folder(["--help"])
    assert "usage: alexlab new DIR" in capsys.readouterr().out
    own = ("--config-dir", "my")
    done = run("train", *own, "experiment=example", "trainer.max_epochs=1", "hydra.run.dir=run", *CPU, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["scores"]["test/count"] == 256
    for command in (("evaluate", "ckpt=run"), ("train", "resume=run", "trainer.max_epochs=2", "trainer.devices=2")):
        refused = run(*command, cwd=tmp_path)
        assert refused.returncode == 1
        assert "add --config-dir=DIR, the folder that contains tiny_net.py" in refused.stdout + refused.stderr
        done = run(*command, *own, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_python_programs_name_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_folder(["my"])
    given = alexlab.train("experiment=example", {"trainer.max_epochs": 1}, *CPU, config_dir="my")
    assert given.scores["test/count"] == 256

    def use() -> tuple[float, str]:
        model = given.load(device="cpu")
        return model.evaluate().top1, model.predict(np.zeros((40, 40, 3), np.uint8)).label

    context = contextvars.Context()  # as in another thread, which inherits no trust
    top1, label = context.run(use)
    assert top1 == pytest.approx(given.scores["test/top1"]) and label in ("circle", "square")
    (found,) = alexlab.runs(config_dir="my")
    assert contextvars.Context().run(found.load).net.__class__.__name__ == "TinyNet"
    with pytest.raises(ConfigError, match=r"add --config-dir=DIR, the folder that contains tiny_net\.py"):
        contextvars.Context().run(alexlab.load, given.folder)
    for name in ("tiny_net", "shapes"):
        sys.modules.pop(name)


def test_the_examples_of_the_page_train(tmp_path: Path) -> None:
    examples = [code for language in ("python", "yaml") for code in blocks("docs/extending.md", language)]
    examples = [code for code in examples if code.startswith("# my/")]
    assert len(examples) == 20
    for code in examples:
        first, rest = code.split("\n", 1)
        assert len([line for line in rest.splitlines() if line.strip()]) <= 16
        path = tmp_path / first.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rest)
    done = run("train", "--config-dir=my", "experiment=own", "hydra.run.dir=run", *CPU, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the run has ended after 4 steps" in done.stdout
    with (tmp_path / "run/metrics.csv").open() as file:
        assert len([row["val/worst_recall"] for row in csv.DictReader(file)]) == 2
    assert re.search("worst_recall", (tmp_path / "run/run.json").read_text())
    own = ("--config-dir=my", "experiment=own", "data=stripes", "trainer.devices=2", "trainer.max_epochs=1")
    done = run("train", *own, "hydra.run.dir=two", *CPU, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data: data.dataset: 2 classes, images: train 16, val 11" in done.stdout
    assert "data: only the datasets of the data module's loaders are used" in done.stdout
    assert "evaluate.py --config-dir=my ckpt=two" in done.stdout  # the command to type next


@pytest.mark.parametrize(("arguments", "message"), [([], "takes one folder"), (["x"], "needs a new or empty folder")])
def test_new_writes_into_no_other_folder(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigError, match=message):
        write_folder(arguments)
