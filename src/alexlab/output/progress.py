"""Progress bars, in a terminal only."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from alexlab.output.escape import shown

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def progress_bar() -> "Progress":
    """Return a progress display whose descriptions are plain text; it is removed when the work is done."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from alexlab.output.terminal import Terminal

    console = Terminal()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


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
