import pytest
import torch
import torch.nn.functional as F

from alexlab.training.metrics import ClassificationMetrics


def test_metrics_match_a_manual_count() -> None:
    metrics = ClassificationMetrics(6)
    logits = torch.tensor(
        [
            [6.0, 5, 4, 3, 2, 1],  # label 0: first
            [6.0, 5, 4, 3, 2, 1],  # label 4: fifth
            [6.0, 5, 4, 3, 2, 1],  # label 5: sixth
            [1.0, 2, 3, 4, 5, 6],  # label 5: first
        ]
    )
    labels = torch.tensor([0, 4, 5, 5])
    metrics.update(logits[:1], labels[:1], torch.tensor([0.5]))
    metrics.update(logits[1:], labels[1:], torch.tensor([1.0, 2.0, 3.0]))
    result = metrics.compute()
    assert (result["top1"], result["top5"], result["count"]) == (2 / 4, 3 / 4, 4)
    assert result["loss"] == 6.5 / 4


def test_padding_is_ignored() -> None:
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
    metrics = ClassificationMetrics(3)
    metrics.update(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.zeros(4))
    assert metrics.top_k == 3
    assert metrics.compute()["top5"] == 1


@pytest.mark.parametrize("sizes", [[9], [4, 5], [1] * 9])
def test_batches_do_not_change_the_result(sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 4, generator=generator), torch.randint(4, (9,), generator=generator)
    losses = F.cross_entropy(logits, labels, reduction="none")
    metrics = ClassificationMetrics(4)
    for part in zip(logits.split(sizes), labels.split(sizes), losses.split(sizes), strict=True):
        metrics.update(*part)
    expected = losses.sum(dtype=torch.float64) / 9
    torch.testing.assert_close(metrics.compute()["loss"], expected, rtol=1e-14, atol=0)
    assert metrics.compute()["top1"] == (logits.argmax(1) == labels).sum().item() / 9
