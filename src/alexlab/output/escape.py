"""Escapes for untrusted text, such as names of files and classes, in terminals, logs, Markdown and plots.

A name may contain a newline that forges a line of a log, an escape sequence that repaints a terminal, or a Unicode override that
reverses the direction of the text after it. Letters of all scripts and emoji are not changed.
"""

import codecs
import logging
import re
import unicodedata
from types import TracebackType
from typing import TextIO

# Control characters, line and paragraph separators, surrogates, and characters that have no width or only format other text.
_HIDDEN = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
_JOINERS = "\u200c\u200d"
_VIRAMA = 9  # Unicode's combining class of the sign that joins Indic consonants
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_MARKDOWN = re.compile(r"[\\`*\[\]<>|$~&]|(?<!\w)_|_(?!\w)|^[#+-](?=[#\s-])")


def shown(value: object) -> str:
    """Return a value as text on one line, with hidden characters escaped as `\\n`, `\\x1b` or `\\u202e`.

    Bytes of a file name that are not UTF-8 become `\\xff`. Text that is already escaped is not changed.
    """
    return _HIDDEN.sub(_escape, str(value))


def shortened(value: object, width: int) -> str:
    """Return a value as `shown`, without its end if it is wider than `width` character cells: at least 4."""
    from rich.cells import cell_len, set_cell_size

    text = shown(value)
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 3).rstrip()}..."


def shown_lines(value: object) -> str:
    """Return a value as `shown`, but keep its line breaks."""
    return "\n".join(map(shown, str(value).split("\n")))


def print_line(value: object = "", *, file: TextIO | None = None) -> None:
    """Print a value as `shown`, on one line."""
    print(shown(value), file=file)


def writable(text: str) -> str:
    """Return a text with characters escaped that UTF-8 cannot encode."""
    return text.encode("utf-8", "shown").decode("utf-8")


def escape_markdown(value: object) -> str:
    """Return a value as `shown`, with a backslash before characters that are markup in Markdown."""
    return _MARKDOWN.sub(r"\\\g<0>", shown(value))


def unescape_markdown(text: str) -> str:
    """Return text without the backslashes of `escape_markdown`."""
    return re.sub(r"\\([\\`*\[\]<>|$~&_#+-])", r"\1", text)


def plot_label(value: object) -> str:
    """Return a value as `shown` for matplotlib: `$` starts no formula, and a leading `_` does not hide it from a legend."""
    text = shown(value).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


class LineFormatter(logging.Formatter):
    """Formatter that writes each record on one line; only tracebacks have several."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in logging
        return shown(super().formatMessage(record))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return shown_lines(super().formatException(ei))


def _escape(match: re.Match[str]) -> str:
    character, text = match[0], match.string
    if character in _JOINERS and _joins(text[max(0, match.start() - 1) : match.start()], text[match.end() :][:1]):
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode returns it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _joins(before: str, after: str) -> bool:
    """Return whether a joiner between two characters is part of an emoji, or of an Arabic or Indic word."""
    if not before or not after:
        return False
    if unicodedata.category(after) == "So":
        return before == "\ufe0f" or unicodedata.category(before) in ("So", "Sk")
    if unicodedata.bidirectional(before) == unicodedata.bidirectional(after) == "AL":
        return True
    return _VIRAMA in (unicodedata.combining(before), unicodedata.combining(after))


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return shown(error.object[error.start : error.end]), error.end


codecs.register_error("shown", _escape_unencodable)
