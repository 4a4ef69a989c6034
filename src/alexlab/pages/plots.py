"""Matplotlib figures in the style of the pages: fonts for all scripts, inline SVG for light and dark pages, and PNG."""

import io
import logging
import math
import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib takes each glyph from the first of these that has it. The last one draws a box for any character.
FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Noto Emoji",
    "WenQuanYi Micro Hei",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Last Resort High-Efficiency",
)
# Colours of the light pages; templates/style.css has them too, with those of the dark pages. Each has a contrast of at least
# 3:1 with the background.
SERIES = (
    "#2250d9", "#d4511c", "#0e8560", "#b3308f", "#967100", "#0a7f9b", "#7a4be0", "#c8283c", "#5a771c", "#646d79",
)  # fmt: skip
INK, MUTED, LINE = "#15181d", "#565f6b", "#dfe3e8"
OUTLIER_RATIO = 3  # values that exceed the usual ones by more than this are cut off
VARIABLES = {"#000000": "ink", "#ffffff": "surface", INK: "ink", MUTED: "muted", LINE: "line"} | {
    color: f"c{number}" for number, color in enumerate(SERIES)
}
STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.0,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}
_COLOR = re.compile("|".join(VARIABLES), re.IGNORECASE)


def new_figure(**kwargs: Any) -> "Figure":
    """Return an empty figure in the style of the pages, whose text can use letters of all scripts that the fonts cover.

    Args:
        kwargs: arguments of `matplotlib.figure.Figure`.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib import font_manager
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    installed = set(font_manager.get_font_names())  # a missing font would be logged for each text
    family = [name for name in FONTS if name in installed]

    class StyledFigure(Figure):
        """A figure that has the style and the fonts without changing other figures in the process."""

        def add_subplot(self, *args: Any, **kwargs: Any) -> Any:
            with matplotlib.rc_context(STYLE | {"axes.prop_cycle": cycler(color=SERIES)}):
                return super().add_subplot(*args, **kwargs)

        def draw(self, renderer: Any) -> None:
            for text in self.findobj(Text):
                text.set_fontfamily(family)
            with matplotlib.rc_context({"font.family": family}):  # of ticks that drawing adds
                super().draw(renderer)

    logging.getLogger("matplotlib.font_manager").setLevel(
        logging.ERROR
    )  # fonts without bold would be logged in each run
    return StyledFigure(layout="constrained", **kwargs)


def integer_ticks(axes: "Axes", low: int, high: int) -> None:
    """Let the x axis show integers only, from `low` to `high`."""
    from matplotlib.ticker import MaxNLocator

    margin = max(0.4, 0.02 * (high - low))
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))


def upper_limit(curves: Sequence[Sequence[float]]) -> float | None:
    """Return an upper end for the axis if few values, such as those of first epochs, are far above all others, else None."""
    later = [value for curve in curves for value in curve[1:] if math.isfinite(value)]
    if not later:
        return None
    usual = max(value for value in later if value <= 10 * max(statistics.median(later), 1e-9))
    return 1.15 * usual if max(map(max, filter(None, curves))) > OUTLIER_RATIO * usual > 0 else None


def png(figure: "Figure") -> bytes:
    """Return a figure as a PNG file, sharp on screens of 2 device pixels per pixel."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=200)
    return content.getvalue()


def svg(figure: "Figure", name: str) -> Markup:
    """Return a figure as an SVG element that takes its colours from the page, so that it suits light and dark pages.

    Text stays text: it is escaped, can be searched and copied, and has the font of the page. An artist whose `gid` is `s` and a
    number is a series that the legend of the page can pick.

    Args:
        figure: figure whose colours are those of this module.
        name: text for readers who do not see the figure.
    """
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "alexlab"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    text = content.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    box = re.search(r'viewBox="[\d. ]+"', text)
    assert box
    start = f'<svg {box[0]} role="img" aria-label="{escape(name)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    text = re.sub(r"<svg[^>]*>", lambda _: start, text, count=1)
    text = re.sub(r'<g id="(s\d+)">', r'<g class="series \1">', text)
    text = re.sub(r'<g id="\w+">', "<g>", text)  # an id must be unique in a page
    text = re.sub(r'style="[^"]*"', lambda style: _COLOR.sub(_variable, style[0]), text)
    return Markup(text)


def _variable(color: re.Match[str]) -> str:
    return f"var(--{VARIABLES[color[0].lower()]})"
