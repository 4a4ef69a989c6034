"""Matplotlib figures: fonts for all scripts, and conversion to PNG."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def new_figure(**kwargs: Any) -> "Figure":
    """Return an empty figure whose text can use letters of all scripts that the installed fonts cover.

    Args:
        kwargs: arguments of `matplotlib.figure.Figure`.
    """
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    installed = set(font_manager.get_font_names())  # a missing font would be logged for each text
    matplotlib.rcParams["font.family"] = [name for name in FONTS if name in installed]
    return Figure(layout="constrained", **kwargs)


def png(figure: "Figure") -> bytes:
    """Return a figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
