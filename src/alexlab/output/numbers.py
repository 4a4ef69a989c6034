"""Numbers and lists in sentences."""

from collections.abc import Sequence


def counted(count: int, noun: str) -> str:
    """Return a number and its noun: `1 image`, `2,000 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[str], most: int = 5) -> str:
    """Return the first items of a list and how many more there are: `a, b and 3 more`."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
