"""A terminal for tests: a stream that says it is one, and the screen that its control sequences draw."""

import io
import logging
import re
import sys

import pytest
from rich.cells import cell_len

from alexlab.output.log_handler import TerminalHandler

CONTROL = re.compile(r"\x1b\[([\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class TerminalStream(io.StringIO):
    """Text stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch, *, width: int) -> TerminalStream:
    """Make stdout a terminal for the rest of a test, and send log records to it only. Not for fixtures: pytest replaces stdout."""
    out, root = TerminalStream(), logging.getLogger()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(root, "handlers", [TerminalHandler()])
    monkeypatch.setattr(root, "level", logging.INFO)
    return out


def screen(text: str) -> list[str]:
    """Return the lines of a terminal without wrapping after it has received a text.

    Understands a return, a line feed, erasing a line, moving the cursor up, and colours.

    Raises:
        ValueError: for another control sequence.
    """
    lines, row, column = [""], 0, 0
    for match in CONTROL.finditer(text.replace("\r\n", "\n")):
        number, code = int(match[1] or 1) if match[2] == "A" else 0, match[2]
        if match[0] == "\r":
            column = 0
        elif match[0] == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif code is None:
            lines[row] = lines[row].ljust(column)
            lines[row] = lines[row][:column] + match[0] + lines[row][column + len(match[0]) :]
            column += len(match[0])
        elif code == "K":
            lines[row] = ""
        elif code == "A":
            row -= number
        elif code != "m":
            raise ValueError(f"unknown control sequence {match[0]!r}")
    return [line.rstrip() for line in lines]


def widest(lines: list[str]) -> int:
    """Return the width of the widest line in character cells."""
    return max(map(cell_len, lines))
