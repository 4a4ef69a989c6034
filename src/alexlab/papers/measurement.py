"""Result of the measure of a claim."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alexlab.papers.estimates import Estimate
from alexlab.records.plots import Panel

if TYPE_CHECKING:
    from alexlab.pages.image_grid import ImageGrid


@dataclass(frozen=True)
class Measurement:
    """Result of a claim.

    Args:
        estimate: the number with its interval.
        verdict: agrees, differs or inconclusive.
        ours: the number as text.
        detail: a sentence with the values behind it.
        panels: plots.
        grids: images.
        published: the published number that was compared, if the claim has one per epoch.
    """

    estimate: Estimate
    verdict: str
    ours: str
    detail: str
    panels: Sequence[Panel] = ()
    grids: "Sequence[ImageGrid]" = field(default_factory=list)
    published: float | None = None


def points(estimate: Estimate) -> str:
    """Return a difference of two fractions in points: `+1.2 points (-0.3 to 2.7)`."""
    text = f"{100 * estimate.value:+.1f} points"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
