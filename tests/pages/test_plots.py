"""Style of plots, as SVG in a page and as PNG files."""

import io
import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib import colors
from matplotlib.text import Text
from PIL import Image

from alexlab.pages import plots
from alexlab.pages.plots import INK, LINE, MUTED, SERIES, VARIABLES, integer_ticks, new_figure, png, svg

TEMPLATES = Path(plots.__file__).parent / "templates"


def test_letters_without_a_font_are_drawn_as_boxes() -> None:
    figure = new_figure(figsize=(1, 1))
    figure.text(0, 0, "Hund собака 犬 \U000f0123")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns about a glyph that no font has
        content = png(figure)
    assert Image.open(io.BytesIO(content)).size == (200, 200)


def test_a_weight_that_a_font_lacks_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    figure = new_figure()
    figure.suptitle(
        "title", fontweight="heavy"
    )  # another weight than in other tests, since it is logged once per process
    png(figure)
    assert not caplog.messages


def test_glyphs_come_from_the_installed_fonts_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.font_manager.get_font_names", lambda: ["Noto Sans CJK SC", "DejaVu Sans", "Other"])
    figure = new_figure()
    figure.subplots().set(title="title", xlim=(0, 1e6))
    figure.text(0, 0, "text")
    png(figure)
    assert {tuple(text.get_fontfamily()) for text in figure.findobj(Text)} == {("DejaVu Sans", "Noto Sans CJK SC")}


def test_svg_takes_its_colours_from_the_page_and_escapes_text() -> None:
    figure = new_figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0, 1], [0.2, 0.9], "o-", gid="s0")
    axes.set(title="<script>alert(1)</script> --> \\$x", xlabel="epoch")
    axes.grid()
    text = svg(figure, 'a "name" & <more>')
    assert not re.search(r"#[0-9a-f]{6}\b", text), "every colour is a variable"
    assert "var(--c0)" in text and "var(--ink)" in text and "var(--line)" in text
    assert "<script" not in text and 'aria-label="a &#34;name&#34; &amp; &lt;more&gt;"' in text
    assert 'class="series s0"' in text
    root = ElementTree.fromstring(text)
    assert "<script>alert(1)</script> --> $x" in [
        element.text for element in root.iter() if element.tag.endswith("text")
    ]
    drawn = [*re.findall(r' id="([^"]+)"', text)]
    assert sorted(set(drawn)) == sorted(drawn)
    assert set(re.findall(r"#(\w+)[\")]", text)) <= set(drawn), "what is referred to is there"


def test_the_style_sheet_has_the_colours_of_the_plots_and_all_have_contrast() -> None:
    css = (TEMPLATES / "style.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6});", part)) for part in css.split("@media screen", 1))
    dark = {name: dark[name] for name in light}  # each has a counterpart
    for color, name in VARIABLES.items():
        assert light[name] == color or color == "#000000"
    assert {light[name] for name in ("ink", "muted", "line")} == {INK, MUTED, LINE}
    for palette in (light, dark):
        for name in ("ink", "muted", "accent", "good", "warn", "bad"):
            for background in ("page", "surface", "tint"):
                assert contrast(palette[name], palette[background]) >= 4.5, (name, background)
        for number in range(len(SERIES)):
            assert contrast(palette[f"c{number}"], palette["surface"]) >= 3


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of WCAG 2.2."""
    bright, dim = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(color: str) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colors.to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_style_of_other_figures_in_the_process_stays() -> None:
    before = dict(matplotlib.rcParams)
    figure = new_figure()
    axes = figure.subplots()
    png(figure)
    assert axes.xaxis.label.get_color() == INK and not axes.spines["top"].get_visible()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("epochs", [1, 2, 7, 90])
def test_epochs_have_ticks_at_whole_numbers(epochs: int) -> None:
    axes = new_figure().subplots()
    integer_ticks(axes, 1, epochs)
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == round(tick) for tick in ticks)
    assert low < 1 and high > epochs and 1 - low < epochs


def test_no_text_needs_a_weight_that_a_font_lacks(caplog: pytest.LogCaptureFixture) -> None:
    axes = new_figure().subplots()
    axes.set(title="Hund 犬", xlabel="Epoch")
    png(axes.figure)
    assert caplog.text == "", "a missing weight would be logged in every run"
