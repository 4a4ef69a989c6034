"""What judges a net: top-1, top-5 and loss, counted over every image exactly once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from alexlab.data.samplers import UNREADABLE


class ClassificationMetrics(Metric):
    """Counts of right answers and the sum of the losses; over several processes the counts are added up.

    Counts are whole numbers and the losses are summed in float64, so that the result does not depend on how the images
    were divided into batches and over devices. Labels below 0 are padding, or images that could not be read; both are left
    out, and the latter are counted.

    Args:
        num_classes: K; a label is among the first min(5, K) answers or it is not.
    """

    full_state_update = False
    right1: Tensor
    right5: Tensor
    count: Tensor
    skipped: Tensor
    loss_sum: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.top_k = min(5, num_classes)
        for name in ("right1", "right5", "count", "skipped"):
            self.add_state(name, torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Adds logits (N, K), labels (N,) and the loss of each image (N,)."""
        valid = labels >= 0
        answers = logits.detach().topk(self.top_k, dim=1).indices
        hits = (answers == labels[:, None]) & valid[:, None]
        self.right1 += hits[:, 0].sum()
        self.right5 += hits.any(dim=1).sum()
        self.count += valid.sum()
        self.skipped += (labels == UNREADABLE).sum()
        self.loss_sum += torch.where(valid, losses.detach(), 0).sum(dtype=torch.float64)

    def gather_state(self) -> list[dict[str, int | float]]:
        """What each rank has counted since the last reset, plain data; all ranks must ask."""
        own = {name: value.item() for name, value in self.metric_state.items() if isinstance(value, Tensor)}
        if not torch.distributed.is_initialized():
            return [own]
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, own)
        return found

    def restore_state(self, counts: Sequence[Mapping[str, int | float]]) -> None:
        """Goes on with what `gather_state` has given: each rank with its own, or the first one with all of another number."""
        ranks, rank = 1, 0
        if torch.distributed.is_initialized():
            ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        own = [counts[rank]] if len(counts) == ranks else counts if rank == 0 else []
        for name, value in self.metric_state.items():
            assert isinstance(value, Tensor)
            total = sum(each[name] for each in own)
            setattr(self, name, torch.tensor(total, dtype=value.dtype, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """`loss`, the mean over the images; `top1`, `top5`, fractions of the images; `count`, their number; `skipped`."""
        return {
            "loss": self.loss_sum / self.count,
            "top1": self.right1.double() / self.count,
            "top5": self.right5.double() / self.count,
            "count": self.count,
            "skipped": self.skipped,
        }
