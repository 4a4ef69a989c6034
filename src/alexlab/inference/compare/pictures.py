"""Pictures of the images that only one of two networks classifies correctly."""

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alexlab.config.confinement import confined_data
from alexlab.config.data import data_config, find_splits
from alexlab.data.splits import Split
from alexlab.errors import AlexlabError
from alexlab.inference.compare.comparison import ONLY_A, ONLY_B, OUTCOMES, Comparison
from alexlab.inference.compare.sources import Evaluated
from alexlab.output.numbers import counted
from alexlab.pages.image_grid import CaptionedImage, ImageGrid
from alexlab.records.results import RunResult

if TYPE_CHECKING:
    from alexlab.inference.compare.report import Context

log = logging.getLogger(__name__)


def picture_grids(comparison: Comparison, context: "Context", limit: int) -> list[ImageGrid]:
    """Return the images that only B classifies correctly and those that only A does, as they are on disk.

    Those with B's most confident predictions come first. An image that cannot be found or read is left out, and the first reason
    is logged.

    Args:
        comparison: the comparison.
        context: its sides and the sources of their predictions.
        limit: maximum number of images of each kind.
    """
    kinds = {kind: comparison.rows(kind, limit) for kind in (ONLY_B, ONLY_A)}
    wanted = {comparison.paths[row] for rows in kinds.values() for row in rows}
    try:
        files = _find_files(context, wanted) if wanted else {}
    except AlexlabError as error:
        log.warning("the page shows no images: %s", error)
        return []
    grids, errors = [], []
    for kind, rows in kinds.items():
        groups = []
        for row in rows:
            try:
                groups.append([_captioned(comparison, row, *files[comparison.paths[row]])])
            except (AlexlabError, KeyError) as error:
                errors.append(error)
        if groups:
            count = comparison.counts[OUTCOMES.index(kind)]
            right, wrong = ("B", "A") if kind == ONLY_B else ("A", "B")
            caption = f"{right} is right and {wrong} is wrong; the images with B's most confident predictions first."
            number = f"{len(groups)} of {count:,}" if len(groups) < count else f"{count:,}"
            grids.append(
                ImageGrid(
                    f"Images that only {right} classifies correctly ({number})", caption, groups, groups_per_row=6
                )
            )
    if errors:
        reason = f"{errors[0]} was not found" if isinstance(errors[0], KeyError) else errors[0]
        log.warning("%s left out, the first one because: %s", counted(len(errors), "image"), reason)
    return grids


def _captioned(comparison: Comparison, row: int, split: Split, index: int, decoding: Any) -> CaptionedImage:
    predictions = [
        f"{name} {comparison.classes[side.predicted[row]]} (p {side.prob[row]:.2f})"
        for name, side in (("A", comparison.a), ("B", comparison.b))
    ]
    lines = [
        f"true {comparison.classes[comparison.labels[row]]}",
        *predictions,
        os.path.basename(comparison.paths[row]),
    ]
    return CaptionedImage(split.load(index, decoding), lines)


def _find_files(context: "Context", wanted: Iterable[str]) -> dict[str, tuple[Split, int, Any]]:
    """Return the split, the index in it and the decoding settings of each image, by its path."""
    remaining, found = {*wanted}, {}
    for splits, decoding in _candidates(context):
        for split in splits:
            for index, path in enumerate(split.paths):
                if path in remaining:
                    remaining.discard(path)
                    found[path] = split, index, replace(decoding, channels=3)
            if not remaining:
                return found
    return found


def _candidates(context: "Context") -> Iterable[tuple[list[Split], Any]]:
    """Yield splits that may have the images, with the decoding settings: of an evaluation, or those of a run."""
    for source in context.all_sources:
        if isinstance(source, Evaluated):
            yield [source.split], source.decoding
    for side in context.sides:
        if side.run is not None:
            yield _splits_of(side.run)


def _splits_of(run: RunResult) -> tuple[list[Split], Any]:
    config = run.record["config"]
    node = confined_data(config["data"]) | {"cache": None, "manifest": None}
    found = find_splits({**config, "data": node})
    return [split for _, split in reversed([*found.items()])], data_config({"data": node}).decoding
