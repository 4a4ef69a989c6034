"""The plot of the learning curves of a run."""

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alexlab.training.callbacks import curves
from alexlab.training.callbacks.curves import draw_curves


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that draws curves and returns the figure."""
    figures = []
    write = curves.png
    monkeypatch.setattr(curves, "png", lambda figure: figures.append(figure) or write(figure))

    def draw(rows: list[dict[str, float]], **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as that of an empty legend
            draw_curves(rows, tmp_path / "curves.png", title="run $1_犬", **options)
        image = Image.open(io.BytesIO((tmp_path / "curves.png").read_bytes()))
        assert image.width > 2000, "sharp on a screen with two device pixels per pixel"
        return figures[-1]

    return draw


def row(epoch: int, **values: float) -> dict[str, float]:
    return {
        "epoch": epoch + 1,
        "lr": 0.1 / (epoch + 1),
        **{name.replace("_", "/"): value for name, value in values.items()},
    }


def test_the_best_epoch_is_marked_with_its_value(draw: Any) -> None:
    scores = [(0.3, 2.0, 0.8), (0.7, 1.2, 0.9), (0.7, 1.1, 1.0), (0.5, 1.5, 0.9)]
    rows = [row(n, val_top1=top1, val_loss=loss, val_top5=top5, train_loss=loss + 1) for n, (top1, loss, top5) in enumerate(scores)]  # fmt: skip
    figure = draw(rows)
    loss, accuracy, rate = figure.axes
    assert figure.get_suptitle() == r"run \$1_犬"
    assert accuracy.get_title(loc="right") == "best: epoch 3, 0.7000", "of equal scores the lower loss"
    assert accuracy.get_ylim() == (0, 1.02)
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["Top-1, validation", "Top-5, validation"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["Training", "Validation"]
    assert list(rate.lines[0].get_ydata()) == [0.1 / number for number in (1, 2, 3, 4)]
    assert list(rate.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert draw(rows, metric="loss", mode="min").axes[0].get_title(loc="right") == "best: epoch 3, 1.1000"


def test_top5_of_few_classes_is_left_out_and_another_metric_is_drawn(draw: Any) -> None:
    figure = draw([row(n, val_top1=0.5, val_top5=1.0, val_f1=0.2 + n / 10) for n in range(3)])
    assert len(figure.axes[1].get_legend().get_texts()) == 1
    figure = draw([row(n, val_f1=0.2 + n / 10) for n in range(3)], metric="f1")
    assert figure.axes[1].get_title(loc="right") == "best: epoch 3, 0.4000"


@pytest.mark.parametrize(
    "rows", [[], [row(0)], [row(0, train_loss=2.0)], [row(4, val_top1=0.2, val_loss=float("nan"))]]
)
def test_runs_that_ended_early_are_drawn(draw: Any, rows: list[dict[str, float]]) -> None:
    figure = draw(rows)
    for axes in figure.axes:
        assert all(tick == round(tick) for tick in axes.get_xticks()) or not rows
        assert all(line.get_marker() == "o" for line in axes.lines if len(line.get_xdata()) == 1)


def test_a_first_epoch_outlier_is_cut_off(draw: Any) -> None:
    figure = draw([row(n, val_loss=loss) for n, loss in enumerate([17.5, 2.3, 2.0])])
    assert figure.axes[0].get_ylim()[1] == pytest.approx(1.15 * 2.3)
