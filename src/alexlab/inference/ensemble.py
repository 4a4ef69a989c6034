"""Average of several trained networks: the weighted mean of their softmax (2012 paper, section 5 and table 2)."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alexlab.errors import ConfigError
from alexlab.records.find import find_runs
from alexlab.records.layout import BEST, LAST, RUN_JSON, SWEEP_JSON
from alexlab.records.record import FINISHED
from alexlab.records.results import read_runs
from alexlab.training.preprocessing import Inference, average_logits, eval_logits

log = logging.getLogger(__name__)


class EnsembleInference(nn.Module):
    """Several trained networks, each with its own preprocessing, whose weighted mean softmax is one distribution over K classes.

    Args:
        members: the M networks.
        weights: weight of each member; their sum is 1.
        views: for each member, which of the views of an image it reads.
        orders: for each member, the K indices of its logits in the common order of the classes.
    """

    log_weights: Tensor
    orders: Tensor

    def __init__(
        self,
        members: Sequence[Inference],
        *,
        weights: Sequence[float],
        views: Sequence[int],
        orders: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.views = tuple(views)
        self.register_buffer("log_weights", torch.tensor(weights, dtype=torch.float64).log().float(), persistent=False)
        self.register_buffer("orders", torch.tensor(orders), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.log_weights.device

    @property
    def singles(self) -> list[Inference]:
        """The members as a list."""
        return [member for member in self.members if isinstance(member, Inference)]

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Return the logarithm of the mean of the members' softmax, float32 (N, K), see `all_logits`."""
        return self.all_logits(images)[0]

    def all_logits(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits (N, K) of the average, then those of each member.

        Args:
            images: for each view uint8 images (N, C, H, W), or several crops of them (N, V, C, H, W), on any device.
        """
        logits = [
            eval_logits(member, images[view])[:, order]
            for member, view, order in zip(self.singles, self.views, self.orders, strict=True)
        ]
        return [average_logits(logits, self.log_weights), *logits]

    def probs(self, images: Sequence[Tensor]) -> Tensor:
        """Map images as in `all_logits` to probabilities (N, K)."""
        return self(images).softmax(1)


def normalized_weights(weights: Any, count: int) -> list[float]:
    """Return weights with the sum 1, equal ones for None.

    Raises:
        ConfigError: if they are not one positive number per checkpoint.
    """
    if weights is None:
        return [1 / count] * count
    numbers = list(weights) if isinstance(weights, Iterable) and not isinstance(weights, str) else []
    if len(numbers) != count or not all(
        isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < float("inf")
        for number in numbers
    ):
        raise ConfigError(f"weights must be one positive number per checkpoint; got {weights} for {count}")
    return [number / sum(numbers) for number in numbers]


def member_names(ckpt: str | Sequence[str]) -> list[str]:
    """Return the checkpoints that `ckpt` names: the folder of a sweep stands for its finished runs.

    Raises:
        ConfigError: if it names none.
    """
    names = [ckpt] if isinstance(ckpt, str) else [*ckpt]
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"ckpt must be a run folder, a file or a list of them; got {ckpt}")
    return [each for name in names for each in (_finished_runs(Path(name)) if is_sweep(Path(name)) else [name])]


def is_sweep(path: Path) -> bool:
    """Return whether a path is the folder of a sweep, or another folder that contains run folders."""
    if any((path / name).is_file() for name in (BEST, LAST, RUN_JSON)):
        return False
    return (path / SWEEP_JSON).is_file() or any(path.glob(f"*/{RUN_JSON}"))


def _finished_runs(sweep: Path) -> list[str]:
    runs = read_runs(find_runs([str(sweep)]))
    finished = [
        run for run in runs if run.status == FINISHED and any((run.folder / name).is_file() for name in (BEST, LAST))
    ]
    if not finished:
        raise ConfigError(f"ckpt must have finished runs; no finished run in {sweep} has a checkpoint")
    log.info("ckpt=%s: %s", sweep, ", ".join(run.folder.name for run in finished))
    if left_out := [f"{run.folder.name} ({run.status})" for run in runs if run not in finished]:
        log.info("left out: %s", ", ".join(left_out))
    return [str(run.folder) for run in finished]
