"""The notebooks of the documentation, executed in order in one folder."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from support.commands import run
from support.runs import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def test_there_are_three_notebooks_with_stored_outputs() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), path.name
        outputs = [output for cell in cells for output in cell["outputs"]]
        assert not [output for output in outputs if output.get("name") == "stderr"], path.name
        assert any("image/png" in output.get("data", {}) for output in outputs) or path.name.startswith("1_")


@pytest.mark.slow
def test_the_notebooks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is shortened, and starts in a forked process; `tests/api/test_training.py` covers the process of its own."""

    def trained(arguments: Sequence[str]) -> Path:
        kept = [argument for argument in arguments if not argument.startswith("trainer.max_epochs")]
        short = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu"]
        done = run("train", *kept, *short, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        kind = "sweeps" if "-m" in arguments else "train"
        return max((tmp_path / "outputs" / kind).glob("*/*"), key=lambda path: path.stat().st_mtime)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr("alexlab.api.training._run_command", trained)
    for path in NOTEBOOKS:
        shell = InteractiveShell()
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                shell.run_cell("".join(cell["source"])).raise_error()
    assert (tmp_path / "outputs/net.onnx").is_file() and (tmp_path / "outputs/report/report.html").is_file()
