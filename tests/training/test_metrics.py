import pytest
import torch
import torch.nn.functional as F

from alexlab.training.metrics import ClassificationMetrics


def test_counts_by_hand() -> None:
    scores = ClassificationMetrics(6)
    logits = torch.tensor(
        [
            [6.0, 5, 4, 3, 2, 1],  # label 0: first
            [6.0, 5, 4, 3, 2, 1],  # label 4: fifth
            [6.0, 5, 4, 3, 2, 1],  # label 5: sixth
            [1.0, 2, 3, 4, 5, 6],  # label 5: first
        ]
    )
    labels = torch.tensor([0, 4, 5, 5])
    scores.update(logits[:1], labels[:1], torch.tensor([0.5]))
    scores.update(logits[1:], labels[1:], torch.tensor([1.0, 2.0, 3.0]))
    result = scores.compute()
    assert (result["top1"], result["top5"], result["count"]) == (2 / 4, 3 / 4, 4)
    assert result["loss"] == 6.5 / 4


def test_padding_counts_for_nothing() -> None:
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    losses = F.cross_entropy(logits, labels, reduction="none")
    plain, padded = ClassificationMetrics(3), ClassificationMetrics(3)
    plain.update(logits, labels, losses)
    padded.update(
        torch.cat([logits, torch.randn(2, 3)]),
        torch.cat([labels, torch.tensor([-1, -1])]),
        torch.cat([losses, losses[:2]]),
    )
    assert {name: value.item() for name, value in plain.compute().items()} == {
        name: value.item() for name, value in padded.compute().items()
    }


def test_top5_of_three_classes_is_top3() -> None:
    scores = ClassificationMetrics(3)
    scores.update(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.zeros(4))
    assert scores.top_k == 3
    assert scores.compute()["top5"] == 1


@pytest.mark.parametrize("sizes", [[9], [4, 5], [1] * 9])
def test_batches_do_not_change_the_result(sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 4, generator=generator), torch.randint(4, (9,), generator=generator)
    losses = F.cross_entropy(logits, labels, reduction="none")
    scores = ClassificationMetrics(4)
    for part in zip(logits.split(sizes), labels.split(sizes), losses.split(sizes), strict=True):
        scores.update(*part)
    expected = losses.sum(dtype=torch.float64) / 9
    torch.testing.assert_close(scores.compute()["loss"], expected, rtol=1e-14, atol=0)
    assert scores.compute()["top1"] == (logits.argmax(1) == labels).sum().item() / 9
