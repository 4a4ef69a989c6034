"""Text from files, configs and names, made safe to show. Imports nothing heavy.

A name may hold a newline that forges a line of a log, an escape sequence that repaints a terminal, or an override that
reverses the direction of what follows. Letters of all scripts and emoji stay as they are.
"""

import codecs
import logging
import re
import unicodedata
from types import TracebackType
from typing import TextIO

# Control characters, line and paragraph separators, surrogates, and what has no width or only an effect on the text around it.
_HIDDEN = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
_JOINERS = "\u200c\u200d"
_VIRAMA = 9  # the combining class
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_MARKDOWN = re.compile(r"[\\`*\[\]<>|$~&]|(?<!\w)_|_(?!\w)|^[#+-](?=[#\s-])")


def shown(value: object) -> str:
    """Return a value as text on one line, with every hidden character as an escape such as `\\n`, `\\x1b` or `\\u202e`.

    Bytes of a file name that are not UTF-8 become `\\xff`. Text that is already escaped stays the same.
    """
    return _HIDDEN.sub(_escape, str(value))


def shown_lines(value: object) -> str:
    """Return a value as `shown` does, but keep its line breaks."""
    return "\n".join(map(shown, str(value).split("\n")))


def print_line(value: object = "", *, file: TextIO | None = None) -> None:
    """Print a value as `shown`, on one line of the terminal."""
    print(shown(value), file=file)


def writable(text: str) -> str:
    """Return text that can be written as UTF-8; only what cannot is escaped."""
    return text.encode("utf-8", "shown").decode("utf-8")


def markdown(value: object) -> str:
    """Return a value as `shown`, with a backslash before what Markdown would take for markup."""
    return _MARKDOWN.sub(r"\\\g<0>", shown(value))


def without_markdown(text: str) -> str:
    """Return what `markdown` was given."""
    return re.sub(r"\\([\\`*\[\]<>|$~&_#+-])", r"\1", text)


def plot_label(value: object) -> str:
    """Return a value as `shown` for a text of matplotlib: `$` starts no formula, a first `_` does not hide it in a legend."""
    text = shown(value).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


class LineFormatter(logging.Formatter):
    """Formatter that writes a record on one line; only a traceback has more."""

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
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as Python decodes file names
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _joins(before: str, after: str) -> bool:
    """Return whether a joiner is part of how an emoji, an Arabic or an Indic word is written."""
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
