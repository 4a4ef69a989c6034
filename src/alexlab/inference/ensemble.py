"""Average of several trained networks: the weighted mean of their softmax (2012 paper, section 5 and table 2)."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alexlab.data.config import DataConfig
from alexlab.errors import ConfigError
from alexlab.records.layout import BEST, LAST, SWEEP_JSON
from alexlab.records.record import FINISHED
from alexlab.records.results import find_runs, read_runs
from alexlab.training.preprocessing import Inference, average_logits, eval_logits

if TYPE_CHECKING:
    from alexlab.inference.checkpoint import TrainedModel

log = logging.getLogger(__name__)

# Keys of `data` that decide which images are in which split.
SPLIT_KEYS = (
    *("root", "url", "dataset", "generate", "splits", "val_split", "val_fraction", "test_fraction"),
    *("split_seed", "group", "folds", "fold"),
)


class EnsembleInference(nn.Module):
    """Several trained networks, each with its own preprocessing, that answer with one distribution over K classes.

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


def average(models: Sequence["TrainedModel"], weights: Sequence[float] | None) -> "TrainedModel":
    """Return the ensemble of some models, with the classes in the order of the first one; a single model as it is.

    Args:
        models: trained models of single networks, on one device.
        weights: positive weight of each model, of any scale; None for equal weights.

    Raises:
        ConfigError: if the weights do not match the models, or the models have different classes.
    """
    shares = _normalized(weights, len(models))
    if len(models) == 1:
        return models[0]
    first = models[0]
    keys: list[Any] = []
    views: list[int] = []
    for model in models:
        if model.members:
            raise ConfigError(f"an ensemble must be made of single networks; {model.path} is an ensemble itself")
        if {*model.classes} != {*first.classes}:
            raise ConfigError(
                f"the members of an ensemble must have the same classes; only one of {first.path} and {model.path} has "
                f"{', '.join(sorted({*first.classes} ^ {*model.classes})[:10])}"
            )
        key = (model.config["augmentation"]["eval"], model.config["data"]["image_size"], asdict(model.decoding))
        views.append(keys.index(key) if key in keys else len(keys))
        keys += [key] if views[-1] == len(keys) else []
    orders = [[model.classes.index(name) for name in first.classes] for model in models]
    inference = EnsembleInference([model.single for model in models], weights=shares, views=views, orders=orders)
    members = tuple(replace(model, weight=share) for model, share in zip(models, shares, strict=True))
    return replace(first, path=None, best={}, inference=inference.eval().to(first.inference.device), members=members)


def _normalized(weights: Any, count: int) -> list[float]:
    """Return weights with the sum 1, equal ones for None."""
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
    """Return whether a path is the folder of a sweep."""
    return (path / SWEEP_JSON).is_file()


def _finished_runs(sweep: Path) -> list[str]:
    runs = read_runs(find_runs([str(sweep)]))
    finished = [
        run for run in runs if run.status == FINISHED and any((run.folder / name).is_file() for name in (BEST, LAST))
    ]
    if not finished:
        raise ConfigError(f"ckpt must have finished runs; none of the {len(runs)} runs of {sweep} has a checkpoint")
    log.info("ckpt=%s: %s", sweep, ", ".join(run.folder.name for run in finished))
    if left_out := [f"{run.folder.name} ({run.status})" for run in runs if run not in finished]:
        log.info("left out: %s", ", ".join(left_out))
    return [str(run.folder) for run in finished]


def check_held_out(model: "TrainedModel", settings: DataConfig, split: str, *, from_run: bool) -> None:
    """Raise ConfigError if images of a split may have trained a member, because the members' runs split the data differently.

    Args:
        model: an ensemble, or a single network, for which nothing is checked.
        settings: data settings of the evaluation.
        split: val, test, train or all.
        from_run: whether the settings refer to the data of the first member's run.
    """
    if settings.root is not None and not from_run:
        same = [each for each in model.members if _real(each.config["data"].get("root")) == _real(settings.root)]
    else:
        same = [*model.members] if from_run else []
    for key in SPLIT_KEYS if from_run else SPLIT_KEYS[1:]:
        values = list(dict.fromkeys(str(member.config["data"].get(key)) for member in same))
        if len(values) > 1 and not (key == "fold" and split == "test"):
            instead = "split=test or data.root=DIR" if key == "fold" else "data.root=DIR"
            raise ConfigError(
                f"split={split} must have trained no member, but the runs of the ensemble split the images differently "
                f"(data.{key}: {', '.join(values)}); set {instead}"
            )


def _real(root: Any) -> str:
    return os.path.realpath(str(root))
