"""Fonts for the letters that a plot shows."""

import logging
from collections.abc import Iterable
from typing import Any

from alexlab.output.escape import shown

log = logging.getLogger(__name__)


def choose_fonts(texts: Iterable[str]) -> str:
    """Makes matplotlib take each letter from the first font of this machine that has it.

    Returns:
        The letters that no font has; they are told in the log, and drawn as boxes.
    """
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    wanted = {letter for text in texts for letter in shown(text) if ord(letter) > 127}
    family = ["DejaVu Sans"]
    wanted -= _letters(FT2Font(font_manager.findfont("DejaVu Sans")), wanted)
    if wanted:
        for entry in font_manager.fontManager.ttflist:
            if entry.name.startswith("Last Resort"):
                continue  # which comes with matplotlib, and draws a box with a number for any letter
            try:
                found = _letters(FT2Font(entry.fname), wanted)
            except (OSError, RuntimeError):  # a font that is gone or damaged
                continue
            if found:
                family.append(entry.name)
                wanted -= found
            if not wanted:
                break
    matplotlib.rcParams["font.family"] = family
    missing = "".join(sorted(wanted))
    if missing:
        log.warning("no font of this machine has the letters %s: plots show boxes in their place", missing)
    return missing


def _letters(font: Any, wanted: set[str]) -> set[str]:
    known = font.get_charmap()
    return {letter for letter in wanted if ord(letter) in known}
