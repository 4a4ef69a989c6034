"""Learning rate as a function of the optimizer step, after a linear warm-up."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from alexlab.errors import ConfigError

Schedule = list[dict[str, Any]]


class ByStep(LRScheduler):
    """Learning rate, and optionally momentum, as functions of the optimizer step.

    Its state is only the step. PyTorch's own schedulers also store their settings, so a run resumed with another length
    would keep the schedule of the old one.

    A group with the key `lr_changes`, pairs (epoch, rate) in ascending order, has these rates from these epochs on.

    Args:
        optimizer: optimizer whose learning rates are scaled.
        factor: maps the step to a factor of the learning rate.
        steps_per_epoch: optimizer steps of an epoch.
        momentum: maps the step to the momentum, or to Adam's first beta; None leaves it unchanged.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: Callable[[int], float],
        steps_per_epoch: int,
        momentum: Callable[[int], float] | None = None,
    ) -> None:
        self.factor, self.steps_per_epoch, self.momentum = factor, steps_per_epoch, momentum
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each group at the current step, and set the momentum."""
        for group in self.optimizer.param_groups if self.momentum else ():
            assert self.momentum is not None
            momentum = self.momentum(self.last_epoch)
            group |= {"betas": (momentum, *group["betas"][1:])} if "betas" in group else {"momentum": momentum}
        return [self._rate(*pair) for pair in zip(self.optimizer.param_groups, self.base_lrs, strict=True)]

    def _rate(self, group: dict[str, Any], base: Any) -> Any:
        fixed = [
            rate
            for epoch, rate in group.get("lr_changes", ())
            if self.last_epoch >= round(epoch * self.steps_per_epoch)
        ]
        return fixed[-1] if fixed else base * self.factor(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set this run's learning rate at the step of a checkpoint. Call it after loading the optimizer."""
        super().load_state_dict(state_dict)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate


def per_step(
    optimizer: Optimizer,
    after: Callable[[float], float],
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_start: float,
) -> Schedule:
    """Return a linear warm-up followed by `after`, which maps the epoch (a float) to a factor of the learning rate.

    A run shorter than its warm-up, such as a short trial of a sweep, ends within it.
    """
    check_warmup(warmup_epochs, warmup_start)
    warmup_steps = round(warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return warmup_start + (1 - warmup_start) * step / warmup_steps
        return after(step / steps_per_epoch)

    return [{"scheduler": ByStep(optimizer, factor, steps_per_epoch), "interval": "step"}]


def check_warmup(warmup_epochs: float, warmup_start: float) -> None:
    """Check the keys of a warm-up."""
    check_key(warmup_epochs >= 0, "warmup_epochs", "at least 0", warmup_epochs)
    check_key(0 < warmup_start <= 1, "warmup_start", "a factor in (0, 1]", warmup_start)


def check_key(holds: bool, name: str, must: str, value: Any) -> None:
    """Raise ConfigError unless a key of the schedule holds what it must."""
    if not holds:
        raise ConfigError(f"scheduler.{name} must be {must}; got {value}")
