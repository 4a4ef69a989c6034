import re

import pytest
import torch
import torch.nn.functional as F

from alexlab.errors import ConfigError
from alexlab.losses import CrossEntropy


def test_one_loss_for_each_image() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 1])
    loss = CrossEntropy([1, 1, 1], label_smoothing=0.1)(logits, labels)
    assert loss.shape == (5,)
    torch.testing.assert_close(loss.mean(), F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_balanced_weights_make_the_classes_equal() -> None:
    counts = [6, 3, 1]
    loss = CrossEntropy(counts, class_weights="balanced")
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = loss(torch.zeros(10, 3), labels) / torch.log(torch.tensor(3.0))
    sums = [weights[labels == label].sum() for label in range(3)]
    torch.testing.assert_close(torch.stack(sums), torch.full((3,), 10 / 3))
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))


def test_probabilities_are_labels_too() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for weights in (None, "balanced"):
        loss = CrossEntropy([4, 2, 2], class_weights=weights)
        torch.testing.assert_close(loss(logits, labels), loss(logits, F.one_hot(labels, 3).float()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 1.5}, "loss.label_smoothing must lie in [0, 1); got 1.5"),
        ({"class_weights": "even"}, "loss.class_weights must be balanced or null; got 'even'"),
    ],
)
def test_words(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        CrossEntropy([1, 1], **options)
