"""Progress bars, in a terminal only."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from alexlab.output.escape import shown

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

BAR_WIDTH = 40  # characters; in a terminal of less than 100 columns, what the texts leave
TEXT_WIDTH = 52  # characters, for the texts next to the bar of `fit`


def progress_bar() -> "Progress":
    """Return a progress display whose descriptions are plain text; it is removed when the work is done."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from alexlab.output.log_handler import log_terminal

    terminal = log_terminal()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=BAR_WIDTH if terminal.width >= 100 else None),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=terminal, transient=True, disable=not terminal.is_interactive)


def line_progress() -> "Progress":
    """Return a bar on one line for `fit`, drawn only by `refresh()`: forked DataLoader workers need a process without threads.

    Its tasks have the text fields `count`, `values` and `left`. It leaves columns free: the `^C` of an interruption would move to
    the next line from a full one, and the bar would not be erased.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    from alexlab.output.log_handler import log_terminal

    terminal = log_terminal()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=max(8, min(BAR_WIDTH, terminal.width - TEXT_WIDTH))),
        *(TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("count", "values", "left")),
    )
    return Progress(*columns, console=terminal, transient=True, auto_refresh=False)


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yield items and show the progress.

    Args:
        items: any iterable.
        title: description of the work.
        total: number of items; None for `len(items)`.
    """
    bar = progress_bar()
    if bar.disable:
        yield from items
        return
    with bar:
        yield from bar.track(items, total=total, description=shown(title))
