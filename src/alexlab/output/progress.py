"""A bar for long work, in a terminal only. Imports no torch."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from alexlab.output.escape import shown

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def progress_bar() -> "Progress":
    """Return a progress display whose descriptions are text, not markup; it is gone when the work is done."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from alexlab.output.terminal import Terminal

    console = Terminal()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, with a bar.

    Args:
        items: anything that can be walked.
        title: what is being done.
        total: number of items, where they cannot tell it.
    """
    bar = progress_bar()
    if bar.disable:
        yield from items
        return
    with bar:
        yield from bar.track(items, total=total, description=shown(title))
