"""A rich console for untrusted text: no markup, no `:emoji:` names, no control characters."""

from collections.abc import Iterator, Sequence
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.control import Control
from rich.measure import Measurement
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from alexlab.output.escape import shown

MIN_PATH_WIDTH = 16  # characters of a path that a table does not leave out
FILE_WIDTH = 160  # of tables in files and pipes
_UNLIMITED = 10_000
_CLEAR_LINE = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


class PathCell:
    """A path in a table, without its start if it does not fit, because files of a folder differ only at the end.

    Args:
        path: the path.
    """

    def __init__(self, path: str) -> None:
        self.path = shown(path)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = cell_len(self.path)
        return Measurement(min(MIN_PATH_WIDTH, width), width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        path = self.path
        if cell_len(path) > options.max_width:
            while path and cell_len(path) > options.max_width - 3:
                path = path[1:]
            path = f"...{path}"
        yield Text(path, no_wrap=True)


class Terminal(Console):
    """Console that prints strings, also those in tables, literally. Files and pipes get no control sequences.

    Args:
        file: output; None for stdout.
        width: width in characters; None for that of the terminal, or FILE_WIDTH in a file.
    """

    def __init__(self, *, file: IO[str] | None = None, width: int | None = None) -> None:
        super().__init__(file=file, width=width, markup=False, emoji=False, highlight=False)
        if width is None and not self.is_terminal:
            self.width = FILE_WIDTH

    @property
    def is_terminal(self) -> bool:
        """True if the output is a terminal now: a forked job redirects it, and FORCE_COLOR must not draw bars in a file."""
        return self.file.isatty()

    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor visible: a killed process could not show it again."""
        return False

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as rich text on one line."""
        return super().render_str(shown(text), **options)

    def print_lines(self, text: str, *, wrap: bool = True) -> None:
        """Print lines of escaped text above a live display of this or another process.

        Args:
            text: the lines.
            wrap: wrap them at spaces with a hanging indent. A long word, such as a path, is never broken. False for commands,
                so that what is copied from the terminal can be pasted.
        """
        lines = text.split("\n")
        if wrap:
            lines = [part for line in lines for part in self._wrapped(line)]
        # The bar of another process, of which this one knows nothing, is a single line.
        with self:
            self.control(_CLEAR_LINE)
            self.print(Text("\n".join(lines)), soft_wrap=True)

    def _wrapped(self, line: str) -> Iterator[str]:
        part, *words = line.split(" ")
        for word in words:
            if cell_len(f"{part} {word}".rstrip()) <= self.width:
                part = f"{part} {word}"
            else:
                yield part
                part = f"  {word}"
        yield part

    def print_table(self, table: Table, *, optional: Sequence[str] = ()) -> None:
        """Print a table between its title and its caption.

        Args:
            table: the table.
            optional: headers of columns to leave out, in this order, until the table fits.
        """
        title, caption, table.title, table.caption = table.title, table.caption, None, None
        for header in optional:
            if Measurement.get(self, self.options.update(width=_UNLIMITED), table).maximum <= self.width:
                break
            table.columns = [column for column in table.columns if column.header != header]
        for part in (title, table, caption):
            if isinstance(part, str):
                self.print_lines(shown(part))  # rich would break a path in the middle
            elif part:
                self.print(part)
