"""Fonts and PNG files of plots."""

import io
import warnings

import matplotlib
import pytest
from PIL import Image

from alexlab.pages.plots import new_figure, png


def test_letters_without_a_font_are_drawn_as_boxes() -> None:
    figure = new_figure(figsize=(1, 1))
    figure.text(0, 0, "Hund собака 犬 \U000f0123")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns about a glyph that no font has
        content = png(figure)
    assert Image.open(io.BytesIO(content)).size == (110, 110)


def test_glyphs_come_from_the_installed_fonts_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.font_manager.get_font_names", lambda: ["Noto Sans CJK SC", "DejaVu Sans", "Other"])
    new_figure()
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "Noto Sans CJK SC"]
    monkeypatch.undo()
    new_figure()
