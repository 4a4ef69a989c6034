"""Numbers in sentences."""


def counted(count: int, noun: str) -> str:
    """Return a number and its noun: `1 image`, `2,000 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
