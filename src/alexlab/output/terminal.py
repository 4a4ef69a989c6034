"""Rich output in which text from files, configs and names is text: no markup, no `:emoji:` names, no control characters."""

from typing import IO, Any

from rich.console import Console
from rich.text import Text

from alexlab.output.escape import shown


class Terminal(Console):
    """Console whose strings, those in tables included, are shown as they are.

    Args:
        file: where to print; None is the standard output.
        width: in characters; None is that of the terminal.
    """

    def __init__(self, *, file: IO[str] | None = None, width: int | None = None) -> None:
        super().__init__(file=file, width=width, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as rich text, on one line."""
        return super().render_str(shown(text), **options)
