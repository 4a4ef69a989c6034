"""Comparison of the predictions of two nets on the same images."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from alexlab.data.class_names import display_names
from alexlab.errors import ConfigError
from alexlab.output.escape import shown
from alexlab.output.numbers import counted, listed
from alexlab.records.saved_predictions import SavedPredictions
from alexlab.records.significance import MCNEMAR, Difference, mcnemar, paired_interval

ONLY_B, ONLY_A = "only B right", "only A right"
OUTCOMES = ("both right", ONLY_B, ONLY_A, "both wrong")


def paired_difference(a_correct: np.ndarray, b_correct: np.ndarray) -> Difference:
    """Return the difference of the accuracies of two nets, with its interval (`paired_interval`) and test (`mcnemar`).

    Args:
        a_correct, b_correct: whether A and B classify each image correctly, bool (N,), N > 0.
    """
    a, b = a_correct.astype(np.int64), b_correct.astype(np.int64)
    return Difference(*paired_interval(b - a), p=mcnemar(b, a), test=MCNEMAR)


@dataclass(frozen=True, eq=False)
class SidePredictions:
    """Predictions of one net on N images.

    Args:
        predicted: most probable class, int64 (N,).
        prob: its probability, float (N,).
        label_prob: probability of the label, float (N,).
        in_top5: whether the label is among the five most probable classes, bool (N,).
    """

    predicted: np.ndarray
    prob: np.ndarray
    label_prob: np.ndarray
    in_top5: np.ndarray


@dataclass(frozen=True, eq=False)
class Comparison:
    """Predictions of two nets, A and B, on the same N images.

    Args:
        paths: paths of the images, str (N,).
        classes: display names of all classes that A or B has.
        labels: int64 (N,).
        a, b: the predictions.
        notes: sentences about the images and the classes.
    """

    paths: Sequence[str]
    classes: Sequence[str]
    labels: np.ndarray
    a: SidePredictions
    b: SidePredictions
    notes: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def outcomes(self) -> np.ndarray:
        """Index into OUTCOMES of each image, int64 (N,): 1 if only B is right, 2 if only A is."""
        outcomes: np.ndarray = 2 * (self.b.predicted != self.labels) + (self.a.predicted != self.labels)
        return outcomes

    @cached_property
    def counts(self) -> list[int]:
        """Number of images of each of OUTCOMES."""
        counts: list[int] = np.bincount(self.outcomes, minlength=4).tolist()
        return counts

    @cached_property
    def difference(self) -> Difference:
        """Top-1 accuracy of B minus that of A."""
        return paired_difference(self.a.predicted == self.labels, self.b.predicted == self.labels)

    def num_correct(self, predictions: SidePredictions) -> int:
        """Return the number of images whose most probable class is the label."""
        return int((predictions.predicted == self.labels).sum())

    def rows(self, outcome: str, limit: int) -> list[int]:
        """Return the images with an outcome, those first of whose class B is most confident."""
        found = np.flatnonzero(self.outcomes == OUTCOMES.index(outcome))
        rows: list[int] = found[np.argsort(-self.b.prob[found], kind="stable")][:limit].tolist()
        return rows

    def class_rows(self) -> list[dict[str, Any]]:
        """Return for each class with images: recall of A and B, images that only one of them gets right, and the difference."""
        found = []
        for label in np.unique(self.labels).tolist():
            own = self.labels == label
            both, only_b, only_a, wrong = np.bincount(self.outcomes[own], minlength=4).tolist()
            count = both + only_b + only_a + wrong
            difference = paired_difference(self.a.predicted[own] == label, self.b.predicted[own] == label)
            row = {"class": self.classes[label], "images": count, "recall A": (both + only_a) / count}
            row |= {"recall B": (both + only_b) / count, ONLY_B: only_b, ONLY_A: only_a}
            found.append(row | {"difference": difference.value, "low": difference.low, "high": difference.high})
        return found

    @property
    def verdict(self) -> str:
        """The better net on these images, in one or two sentences."""
        _, only_b, only_a, _ = self.counts
        shares = [100 * self.num_correct(predictions) / len(self) for predictions in (self.a, self.b)]
        images = f"{len(self):,} images" if len(self) > 1 else "the only image"
        if not only_b and not only_a:
            return f"No difference: A and B are right about the same images, {shares[0]:.2f} % of {images}."
        difference = self.difference
        low, value, high = (f"{100 * each:+.2f}" for each in (difference.low, difference.value, difference.high))
        different = counted(only_b + only_a, "image")
        only_one = f"of the {different} that only one of them classifies correctly, B has {only_b:,} right"
        first = "No clear difference"
        if difference.is_significant:
            first = f"{'B' if only_b > only_a else 'A'} is better"
        return (
            f"{first}: A classifies {shares[0]:.2f} % and B {shares[1]:.2f} % of {images} correctly ({value} points, 95 % "
            f"interval {low} to {high}). {only_one[0].upper()}{only_one[1:]} (McNemar's exact test: "
            f"{p_text(difference.p)})."
        )


def p_text(p_value: float) -> str:
    """Return a p-value with four decimals."""
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.4f}"


def match(
    a: SavedPredictions,
    b: SavedPredictions,
    names: Mapping[str, str] | None = None,
    *,
    sizes: tuple[int, int, int] | None = None,
) -> Comparison:
    """Return the comparison on the images that both have, in the order of A.

    Args:
        a, b: predictions; their images match by path and name of the label.
        names: display names by folder name.
        sizes: number of images in the split of A, of B and of both, if `a` or `b` has only some of them.

    Raises:
        ConfigError: if they have no image in common.
    """
    classes = list(dict.fromkeys(map(_normalized, [*a.classes, *b.classes])))
    numbers = [np.array([classes.index(_normalized(name)) for name in each.classes], np.int64) for each in (a, b)]
    rows_of_b = {path: row for row, path in enumerate(b.paths.tolist())}
    pairs = [(row, rows_of_b[path]) for row, path in enumerate(a.paths.tolist()) if path in rows_of_b]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    same = numbers[0][a.labels[rows[:, 0]]] == numbers[1][b.labels[rows[:, 1]]]
    check_common((a.paths.tolist(), b.paths.tolist()), int(same.sum()))
    notes = [
        *_image_notes(*(sizes or (len(a), len(b), len(rows))), int((~same).sum())),
        *_class_notes(a.classes.tolist(), b.classes.tolist()),
    ]
    rows = rows[same]
    return Comparison(
        a.paths[rows[:, 0]].tolist(),
        display_names(classes, names),
        numbers[0][a.labels[rows[:, 0]]],
        _predictions_of(a, numbers[0], rows[:, 0]),
        _predictions_of(b, numbers[1], rows[:, 1]),
        notes,
    )


def check_common(paths: Sequence[Sequence[str]], num_common: int) -> None:
    """Raise ConfigError if no image is in common.

    Args:
        paths: paths of the evaluation images of A, and of B.
        num_common: number of those in common.
    """
    if not num_common:
        a, b = (f"{len(each):,}, such as {shown(each[0])}" if each else "none" for each in paths)
        raise ConfigError(
            f"A and B must have evaluation images with the same path and label in common; A has {a}, and B {b}; "
            "data.root=DIR evaluates both on other images"
        )


def _predictions_of(kept: SavedPredictions, numbers: np.ndarray, rows: np.ndarray) -> SidePredictions:
    top = kept.top_classes[rows]
    return SidePredictions(
        numbers[top[:, 0]],
        kept.top_probs[rows, 0],
        kept.label_prob[rows],
        (top == kept.labels[rows, None]).any(1),
    )


def _image_notes(num_a: int, num_b: int, num_common: int, num_relabelled: int) -> list[str]:
    notes = []
    if not num_a == num_b == num_common:
        notes.append(
            f"The comparison covers the {counted(num_common, 'image')} in both evaluation splits (A: {num_a:,}, B: {num_b:,}); "
            "each of the others was evaluated by one net only."
        )
    if num_relabelled:
        one = num_relabelled == 1
        notes.append(
            f"{num_relabelled:,} {'image has' if one else 'images have'} different labels for A and B and "
            f"{'is' if one else 'are'} left out."
        )
    return notes


def _class_notes(a: Sequence[str], b: Sequence[str]) -> list[str]:
    own_a, own_b = ({_normalized(name) for name in names} for names in (a, b))
    notes = []
    for name, own, others in (("A", own_a, own_b), ("B", own_b, own_a)):
        if extra := sorted(own - others):
            notes.append(f"Only {name} has the classes {listed([*map(shown, extra)], 10)}.")
    return notes


def _normalized(name: str) -> str:
    return unicodedata.normalize("NFC", str(name))
