"""Pages for people: one HTML file each, that needs no network. Imports no torch."""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from alexlab.output.escape import shown

THUMBNAIL = 112  # pixels of a picture's height
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 1200px; margin: 1.5rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
td, th { padding: .25rem .7rem .25rem 0; text-align: left; border-bottom: 1px solid #8884; vertical-align: top; }
th { cursor: pointer; white-space: nowrap; } th::after { content: " ↕"; opacity: .4; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } img { max-width: 100%; }
img.plot { background: #fff; } code { overflow-wrap: anywhere; }
.best { font-weight: 600; } .failed, .bad { color: #c62a2f; } .running { color: #946800; } .good { color: #18794e; }
figure { margin: 0 .8rem .8rem 0; display: inline-block; vertical-align: top; }
figcaption { font-size: 12px; overflow-wrap: anywhere; max-width: 200px; }
.row { display: flex; flex-wrap: wrap; gap: 4px; align-items: flex-end; margin-bottom: .6rem; }
"""
SORT = """
document.querySelectorAll('th').forEach(th => th.addEventListener('click', () => {
  const table = th.closest('table'), column = [...th.parentNode.children].indexOf(th), up = th.dataset.up !== '1';
  th.dataset.up = up ? '1' : '0';
  const value = row => { const cell = row.children[column], n = parseFloat(cell.dataset.v ?? cell.textContent);
    return isNaN(n) ? cell.textContent : n; };
  [...table.tBodies[0].rows].sort((a, b) => { const x = value(a), y = value(b);
    return (typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === 'number' ? -1 : 1) * (up ? 1 : -1); })
    .forEach(row => table.tBodies[0].append(row));
}));
"""


def write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    """Writes a page whose tables sort by a click on the head of a column.

    Args:
        path: of the file.
        title: of the page, plain text.
        parts: of its body, HTML.
    """
    path.write_text("\n".join([*beginning(title), *parts, ending()]), encoding="utf-8")
    return path


def beginning(title: str) -> list[str]:
    """The head of a page that is written in pieces."""
    return [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{text(title)}</title><style>{STYLE}</style><h1>{text(title)}</h1>"
    ]


def ending() -> str:
    """Its last piece."""
    return f"<script>{SORT}</script>"


def text(words: str) -> str:
    """Return text as HTML, on one line."""
    return html.escape(shown(words))


class Html(str):
    """Words that are HTML already; `table` leaves them as they are."""

    __slots__ = ()


def links(files: Sequence[Path], beside: Path) -> Html:
    """The files by name, each a link that holds wherever the folder of the page and theirs are moved together.

    Args:
        files: which there are.
        beside: the folder of the page.
    """
    places = [quote(os.fsencode(os.path.relpath(file.absolute(), beside.absolute()))) for file in files]
    return Html(" ".join(f"<a href='{place}'>{text(file.name)}</a>" for file, place in zip(files, places, strict=True)))


def number(value: Any) -> str:
    """A value of a table as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}" if value == round(value, 1) else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], kinds: Sequence[str] | None = None) -> str:
    """A table that scrolls by itself where the screen is narrow.

    Args:
        columns: their heads.
        rows: values; numbers stand right and sort as numbers, `Html` stands as it is.
        kinds: the CSS class of each row.
    """
    head = "".join(f"<th>{text(column)}" for column in columns)
    body = []
    for row, kind in zip(rows, kinds or [""] * len(rows), strict=True):
        cells = []
        for value in row:
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            words = value if isinstance(value, Html) else text(number(value))
            cells.append(f"<td class=n data-v={value}>{words}" if numeric else f"<td>{words}")
        body.append(f"<tr class='{kind}'>{''.join(cells)}")
    return f"<div class=wide><table><thead><tr>{head}<tbody>{''.join(body)}</table></div>"


def plot(content: bytes, name: str) -> str:
    """A PNG file as a part of the page."""
    return f"<img class=plot alt='{text(name)}' src='data:image/png;base64,{base64.b64encode(content).decode()}'>"


def picture(pixels: np.ndarray, name: str, height: int = THUMBNAIL) -> str:
    """A picture, uint8 (H, W, C), as a part of the page, at most so many pixels high.

    Args:
        pixels: with one or three channels.
        name: what a pointer over it shows.
        height: of the picture on the page; a smaller one keeps its size.
    """
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((2 * height, height))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img loading=lazy alt="{text(name)}" title="{text(name)}" src="data:image/jpeg;base64,{data}">'


def captioned(content: str, caption: str) -> str:
    """Pictures with a line below them; both are HTML."""
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def png(figure: Any) -> bytes:
    """A figure of matplotlib as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
