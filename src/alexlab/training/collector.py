"""Collection of the predictions of an evaluation on all ranks."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexlab.data.splits import Split
from alexlab.records.saved_predictions import MAX_PROBS, SavedPredictions


class PredictionCollector:
    """Predictions of this rank, kept on the device until the end of the evaluation.

    Args:
        split: split that is evaluated.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.keeps_probs = len(split) * len(split.classes) <= MAX_PROBS
        self.batches: list[dict[str, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits float32 (N, K), labels (N,), negative for padding and unreadable images."""
        probs = logits.softmax(1)
        top_probs, top_classes = probs.topk(min(5, probs.shape[1]))
        batch = {"labels": labels, "top_classes": top_classes, "top_probs": top_probs}
        batch["label_prob"] = probs.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        if self.keeps_probs:
            batch["probs"] = probs.half()
        self.batches.append(batch)

    def gather(self, batch_sampler: Any, *, num_ranks: int, rank: int) -> SavedPredictions | None:
        """Return the predictions of all ranks in the order of the split on rank 0, else None. A collective call.

        Args:
            batch_sampler: the sampler of the evaluation; yields the indices of this rank's images, which may be padded.
            num_ranks: number of ranks that divided the images.
            rank: rank of this process among them.
        """
        columns = {name: torch.cat([batch[name] for batch in self.batches]).cpu().numpy() for name in self.batches[0]}
        columns["indices"] = np.array([index for batch in batch_sampler for index in batch])
        found: list[Any] = [columns] * num_ranks
        if num_ranks > 1:
            torch.distributed.gather_object(columns, found if rank == 0 else None)
        if rank > 0:
            return None
        columns = {name: np.concatenate([part[name] for part in found]) for name in columns}
        readable = np.flatnonzero(columns["labels"] >= 0)
        rows = readable[columns["indices"][readable].argsort()]
        indices = columns.pop("indices")[rows]
        assert (np.diff(indices) > 0).all() and (self.split.labels[indices] == columns["labels"][rows]).all()
        paths = np.array([self.split.paths[index] for index in indices.tolist()], dtype=np.str_)
        columns = {name: values[rows] for name, values in columns.items()}
        return SavedPredictions(paths=paths, classes=np.array(self.split.classes, dtype=np.str_), **columns)
