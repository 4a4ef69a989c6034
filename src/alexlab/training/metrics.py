"""Top-1 and top-5 accuracy and mean loss, with every image counted exactly once."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from alexlab.data.labels import UNREADABLE
from alexlab.training.preprocessing import eval_logits


def evaluate_batch(
    forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, *, autocast: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the float32 logits (N, K) and cross entropy (N,) that `ClassificationMetrics` counts.

    The net computes in the precision of its weights regardless of the training precision, so that the metrics are those of
    the checkpoint, on any number of devices.

    Args:
        forward: maps uint8 images (N, C, H, W) to logits (N, K).
        images: uint8 images (N, C, H, W), or views of them (N, V, C, H, W).
        labels: labels (N,), negative for images that are not counted.
        autocast: let the net compute in the precision of the surrounding `torch.autocast`.
    """
    with nullcontext() if autocast else torch.autocast(images.device.type, enabled=False):
        logits = eval_logits(forward, images)
    return logits, cross_entropies(logits, labels)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy (N,) of logits (N, K); images with a negative label, which are not counted, have any."""
    return F.cross_entropy(logits, labels.clamp(min=0), reduction="none")


def widest_float(device: str) -> torch.dtype:
    """Return float64, or float32 for Apple's GPUs (`mps`), which lack it."""
    return torch.float32 if device == "mps" else torch.float64


class ClassificationMetrics(Metric):
    """Counts of correct predictions and the sum of losses, summed over ranks.

    Counts are int64 and losses are summed in float64, so the result does not depend on how the images are divided into
    batches and over devices. Labels below 0 mark padding and unreadable images; both are ignored, the latter are counted.

    Args:
        num_classes: number of classes K; top-5 uses the min(5, K) highest logits.
    """

    full_state_update = False
    correct1: Tensor
    correct5: Tensor
    count: Tensor
    skipped: Tensor
    loss_sum: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.top_k = min(5, num_classes)
        for name in ("correct1", "correct5", "count", "skipped"):
            self.add_state(name, torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        widest = widest_float("mps" if torch.backends.mps.is_available() else "cpu")  # states are moved to any device
        self.add_state("loss_sum", torch.tensor(0.0, dtype=widest), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Add a batch.

        Args:
            logits: logits (N, K).
            labels: labels (N,).
            losses: loss of each image (N,).
        """
        valid = labels >= 0
        hits = (self.top_classes(logits) == labels[:, None]) & valid[:, None]
        self.correct1 += hits[:, 0].sum()
        self.correct5 += hits.any(dim=1).sum()
        self.count += valid.sum()
        self.skipped += (labels == UNREADABLE).sum()
        # precision=bf16-true converts the states of metrics too: torchmetrics (1.9) prevents .bfloat16() but not .to(bfloat16).
        widest = widest_float(losses.device.type)
        self.loss_sum = self.loss_sum.to(widest) + torch.where(valid, losses.detach(), 0).sum(dtype=widest)

    def top_classes(self, logits: Tensor) -> Tensor:
        """Return the min(5, K) classes with the highest logits (N, K), highest first."""
        return logits.detach().topk(self.top_k, dim=1).indices

    def gather_state(self) -> list[dict[str, int | float]]:
        """Return the counts of each rank as plain data. A collective call."""
        own = {name: value.item() for name, value in self.metric_state.items() if isinstance(value, Tensor)}
        if not torch.distributed.is_initialized():
            return [own]
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, own)
        return found

    def restore_state(self, counts: Sequence[Mapping[str, int | float]]) -> None:
        """Restore gathered counts. If the world size changed, rank 0 takes all of them."""
        ranks, rank = 1, 0
        if torch.distributed.is_initialized():
            ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        own = [counts[rank]] if len(counts) == ranks else counts if rank == 0 else []
        for name, value in self.metric_state.items():
            assert isinstance(value, Tensor)
            total = sum(each[name] for each in own)
            device = "mps" if torch.backends.mps.is_available() else self.device.type  # it may be moved there later
            dtype = widest_float(device) if value.is_floating_point() else value.dtype
            setattr(self, name, torch.tensor(total, dtype=dtype, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return `loss` (mean over images), `top1` and `top5` (fractions), `count` and `skipped` (numbers of images)."""
        widest = widest_float(self.count.device.type)
        return {
            "loss": self.loss_sum / self.count,
            "top1": self.correct1.to(widest) / self.count,
            "top5": self.correct5.to(widest) / self.count,
            "count": self.count,
            "skipped": self.skipped,
        }


class ExtraMetrics(nn.Module):
    """Further metrics by name, of the images that count.

    Args:
        metrics: metrics of torchmetrics or of your own, updated with logits (N, K) and labels (N,); each computes one number.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict({name: metric.clone() for name, metric in metrics.items()})

    def keep_local(self) -> None:
        """Do not combine the ranks, each of which sees every image."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.distributed_available_fn = _never

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch. The selection of the valid images waits for the device; without metrics nothing does."""
        if not self.by_name:
            return
        valid = labels >= 0
        logits, labels = logits[valid], labels[valid]
        for metric in self.by_name.values() if len(labels) else ():
            metric.update(logits, labels)  # type: ignore[operator]

    def compute_and_reset(self) -> dict[str, float]:
        """Return the value of each metric over all ranks. A collective call."""
        found = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The ``compute`` method", UserWarning)  # a rank may have no image
            for name, metric in self.by_name.items():
                found[name] = float(metric.compute())  # type: ignore[operator]
                metric.reset()  # type: ignore[operator]
        return found


def _never() -> bool:
    return False
