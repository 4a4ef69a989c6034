"""A rich console for untrusted text: no markup, no `:emoji:` names, no control characters."""

from typing import IO, Any

from rich.console import Console
from rich.text import Text

from alexlab.output.escape import shown


class Terminal(Console):
    """Console that prints strings, also those in tables, literally.

    Args:
        file: output; None for stdout.
        width: width in characters; None for that of the terminal.
    """

    def __init__(self, *, file: IO[str] | None = None, width: int | None = None) -> None:
        super().__init__(file=file, width=width, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as rich text on one line."""
        return super().render_str(shown(text), **options)
