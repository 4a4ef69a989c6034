"""Log records in the terminal, next to progress bars."""

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexlab.output.terminal import Terminal

WHOLE: dict[str, Any] = {"whole": True}  # `extra` of a command to copy: it is not wrapped


def shorter(texts: Sequence[str]) -> dict[str, Any]:
    """Return the `extra` of a record that has shorter texts for a narrow terminal, the longest first."""
    return {"shorter": texts}


class TerminalHandler(logging.Handler):
    """Handler that prints records on stdout; in a terminal, above the progress bar and wrapped at spaces."""

    @cached_property
    def terminal(self) -> "Terminal":
        from alexlab.output.terminal import Terminal

        return Terminal()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        try:
            text, terminal = self.format(record), self.terminal
            if not terminal.is_terminal:
                terminal.file.write(f"{text}\n")
                terminal.file.flush()
                return
            texts = [text, *getattr(record, "shorter", ())]
            fitting = next((each for each in texts if len(each) <= terminal.width), texts[-1])
            terminal.print_lines(fitting, wrap=not (record.exc_info or getattr(record, "whole", False)))
        except Exception:
            self.handleError(record)


def log_terminal() -> "Terminal":
    """Return the terminal that log records are printed on, for a display that they must not tear."""
    from alexlab.output.terminal import Terminal

    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, TerminalHandler)]
    return handlers[0].terminal if handlers else Terminal()
