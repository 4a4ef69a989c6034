import re
from collections.abc import Callable
from pathlib import Path

import pytest

from alexlab.training.callbacks.epoch_log import epoch_lines
from support.runs import rows
from support.terminal import open_terminal, screen, widest

Train = Callable[..., float | None]
ROW = {
    "train/loss": 12.3456, "train/top1": 0.5, "val/loss": 2.0, "val/top1": 0.5, "val/top5": 0.75, "images_per_s": 12345.6,
    "elapsed_s": 123.4,
}  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_run_draws_whole_lines_that_fit(
    width: int, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = open_terminal(monkeypatch, width=width)
    train("trainer.max_epochs=2", "callbacks.progress.refresh_s=0")
    drawn = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", out.getvalue()))
    # The commands at the end, and paths, are not wrapped.
    assert widest([line for line in drawn if str(tmp_path)[:8] not in line]) <= width
    bars = [line for line in drawn if "━" in line and line.startswith(("epoch", "test"))]
    parts = [r"epoch 1/2 ━+ 3/3 loss \d\.\d{4}", r"epoch 1/2 val ━+ 2/2", r"epoch 2/2 ━+ 3/3 loss", r"test ━+ 1/1"]
    for part in parts:
        assert any(re.match(part, bar.replace("╸", "━").replace("╺", "━")) for bar in bars), (part, bars)

    lines = screen(out.getvalue())
    assert not [line for line in lines if line.startswith("epoch") and "━" in line], "no bar is left"
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line[:11] for line in epochs] == ["epoch 1/2  ", "epoch 2/2  "]
    assert all("val loss" in line for line in epochs) and ("images/s" in epochs[0]) == (width == 200)
    assert lines[0] == f"checking the config; the run folder will be {tmp_path / 'run'}"
    header = next(line for line in lines if "parameters ┃" in line)
    assert ("multiply-adds" in header) == (width == 200) and not any("ReLU" in line for line in lines)
    assert lines.index("next:") == lines.index(f"run folder: {tmp_path / 'run'}") + 1
    assert f"alexlab evaluate ckpt={tmp_path / 'run'}" in lines and "ReLU" in {
        row["kind"] for row in rows(tmp_path / "run/layers.csv")
    }


def test_the_line_of_an_epoch_loses_values_in_a_narrow_terminal() -> None:
    full, *shorter = epoch_lines(ROW, "top1")
    assert full == "train loss 12.3456 top1 0.5000  val loss 2.0000 top1 0.5000 top5 0.7500  12346 images/s  123.4 s"
    assert shorter[-1] == "val loss 2.0000 top1 0.5000"
    assert epoch_lines(ROW | {"val/f1": 0.25}, "f1")[-1] == "val loss 2.0000 top1 0.5000 f1 0.2500"
    assert [len(line) for line in (full, *shorter)] == sorted(map(len, (full, *shorter)), reverse=True)
