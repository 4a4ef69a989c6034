"""Collected predictions of an evaluation."""

import numpy as np
import pytest
import torch
from torch import Tensor

from alexlab.data.labels import PADDING, UNREADABLE
from alexlab.data.samplers import EvalBatchSampler
from alexlab.data.splits import Split
from alexlab.training import collector
from alexlab.training.collector import PredictionCollector


def test_ranks_are_merged_without_padding_and_unreadable_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images of which five are a sample, on three ranks; the image 4 is unreadable."""
    labels, logits = np.array([0, 1, 2, 3, 4, 5, 6]), torch.randn(7, 8)
    split = Split("root", [*"abcdefgh"], [f"{number}.png" for number in range(7)], labels)
    sample = np.array([0, 2, 3, 4, 6])

    def rank(number: int) -> tuple[PredictionCollector, EvalBatchSampler]:
        sampler = EvalBatchSampler(7, batch_size=3, num_ranks=3, rank=number, sample=sample)
        found = PredictionCollector(split)
        for batch in sampler:
            indices = torch.tensor(batch)
            targets = torch.where(indices == PADDING, PADDING, torch.from_numpy(labels)[indices])
            found.add(logits[indices], torch.where(indices == 4, UNREADABLE, targets))
        return found, sampler

    gathered: list[dict[str, np.ndarray]] = []

    def gather(own: dict[str, np.ndarray], found: list[dict[str, np.ndarray]] | None) -> None:
        gathered.append(own)
        if found is not None:
            found[:] = gathered

    monkeypatch.setattr(torch.distributed, "gather_object", gather)
    for max_probs in (8 * 7, 8 * 7 - 1):
        monkeypatch.setattr(collector, "MAX_PROBS", max_probs)
        gathered.clear()
        for number in (2, 1):
            found, sampler = rank(number)
            assert found.gather(sampler, num_ranks=3, rank=number) is None
        first, sampler = rank(0)
        kept = first.gather(sampler, num_ranks=3, rank=0)
        assert kept is not None and kept.paths.tolist() == ["0.png", "2.png", "3.png", "6.png"]
        rows: Tensor = logits[[0, 2, 3, 6]].softmax(1)
        assert (kept.labels, kept.predicted.tolist()) == (pytest.approx([0, 2, 3, 6]), rows.argmax(1).tolist())
        np.testing.assert_allclose(kept.top_probs, rows.topk(5).values)
        np.testing.assert_allclose(kept.label_prob, rows[range(4), [0, 2, 3, 6]])
        assert (kept.probs is None) == (max_probs == 55)
