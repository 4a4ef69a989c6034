"""Members of an ensemble on a labelled split: each network alone, and what their average gains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alexlab.inference.metrics import compute_metrics
from alexlab.records.significance import paired_interval

if TYPE_CHECKING:
    from alexlab.inference.predictions import Predictions

Table = tuple[str, Sequence[str], list[list[Any]]]  # title, columns, rows


@dataclass(frozen=True)
class Member:
    """One network of an ensemble on the images of the evaluation.

    Args:
        checkpoint: file that it was loaded from.
        weight: its share of the average.
        predictions: its predictions.
    """

    checkpoint: str
    weight: float
    predictions: "Predictions"


@dataclass(frozen=True)
class Gain:
    """Difference between an accuracy of the average and that of its members on the same images, as fractions.

    Args:
        metric: `top1` or `top5`.
        over: `best` for the member with the highest accuracy, `mean` for the mean of the members' accuracies.
        value: the difference.
        interval: its 95 % interval, see `paired_interval`.
    """

    metric: str
    over: str
    value: float
    interval: tuple[float, float]


def gains(average: "Predictions", members: Sequence[Member]) -> list[Gain]:
    """Return the gains of the average in top-1 and top-5 over its best member and over the mean of its members."""
    found = []
    for metric, k in (("top1", 1), ("top5", 5)):
        hits = np.stack([member.predictions.hits(k) for member in members]).astype(float)  # (M, N)
        for over, compared in (("best", hits[hits.mean(1).argmax()]), ("mean", hits.mean(0))):
            value, *interval = paired_interval(average.hits(k) - compared)
            found.append(Gain(metric, over, value, (interval[0], interval[1])))
    return found


def member_scores(average: "Predictions", members: Sequence[Member]) -> dict[str, Any]:
    """Return the members' metrics and the gains as plain data; nothing without members."""
    if not members:
        return {}
    return {
        "members": [
            {"checkpoint": member.checkpoint, "weight": member.weight, **compute_metrics(member.predictions)}
            for member in members
        ],
        "gains": {
            f"{gain.metric}_over_{gain.over}": {"value": gain.value, "interval": list(gain.interval)}
            for gain in gains(average, members)
        },
    }


def member_tables(average: "Predictions", members: Sequence[Member], *, with_top5: bool) -> list[Table]:
    """Return the tables of the members and of the gains; nothing without members."""
    if not members:
        return []
    metrics = {"top1": "top-1"} | ({"top5": "top-5"} if with_top5 else {})
    columns = ["member", "weight", *(text for name in metrics.values() for text in (name, f"{name} interval")), "loss"]
    names = short_names([member.checkpoint for member in members])
    rows = []
    for name, member in zip(names, members, strict=True):
        found = compute_metrics(member.predictions)
        cells = [cell for metric in metrics for cell in (found[metric], _interval_text(found[f"{metric}_interval"]))]
        rows.append([name, member.weight, *cells, found["loss"]])
    over = {"best": "best member", "mean": "mean of members"}
    gained = [
        [f"{metrics[gain.metric]} over {over[gain.over]}", f"{gain.value:+.4f}", _interval_text(gain.interval, "+.4f")]
        for gain in gains(average, members)
        if gain.metric in metrics
    ]
    return [("members alone", columns, rows), ("gain of the average", ("accuracy", "gain", "95 % interval"), gained)]


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """Return the parts of paths that distinguish them, at least the last one; members of one file are numbered."""
    if len({*checkpoints}) < len(checkpoints):
        return [
            f"{number} of {checkpoint.rsplit('/', 1)[-1]}" for number, checkpoint in enumerate(checkpoints, start=1)
        ]
    parts = [checkpoint.split("/") for checkpoint in checkpoints]
    while all(len(each) > 1 for each in parts) and len({each[0] for each in parts}) == 1:
        parts = [each[1:] for each in parts]
    while all(len(each) > 1 for each in parts) and len({each[-1] for each in parts}) == 1:
        parts = [each[:-1] for each in parts]
    return ["/".join(each) for each in parts]


def _interval_text(interval: Sequence[float], form: str = ".4f") -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"
