"""A bar for long work, in a terminal only. Imports no torch."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def watched(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Hands on the items, with a bar.

    Args:
        items: anything that can be walked.
        title: what is being done.
        total: of the items, where they cannot tell their number.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console()
    if not console.is_terminal:
        yield from items
        return
    yield from track(items, description=title, total=total, console=console, transient=True)
