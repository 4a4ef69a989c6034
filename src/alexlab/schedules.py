"""Learning-rate schedules as Lightning wants them: each function gives the `lr_scheduler` entries of one optimizer.

All of them are counted in optimizer steps and take a linear warm-up from `warmup_start` times the rate to the rate. The
closed-form ones give a factor for a position in epochs, so that a resumed or a longer run needs no hidden state.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from alexlab.errors import ConfigError

Schedule = list[dict[str, Any]]
NEVER = 2**62  # epochs between two steps that Lightning makes


def constant(
    optimizer: Optimizer,
    *,
    num_epochs: float,
    steps_per_epoch: int,
    warmup_epochs: float = 0,
    warmup_start: float = 0.01,
) -> Schedule:
    """The same rate throughout."""
    return _per_step(optimizer, lambda epoch: 1.0, steps_per_epoch, warmup_epochs, warmup_start)


def step(
    optimizer: Optimizer,
    *,
    num_epochs: float,
    steps_per_epoch: int,
    step_epochs: int = 30,
    gamma: float = 0.1,
    warmup_epochs: float = 0,
    warmup_start: float = 0.01,
) -> Schedule:
    """Times `gamma` every `step_epochs` epochs (torchvision's recipe for AlexNet: x.1 every 30)."""
    if step_epochs < 1:
        raise ConfigError(f"scheduler.step_epochs must be at least 1; got {step_epochs}")
    return _per_step(
        optimizer, lambda epoch: gamma ** int(epoch // step_epochs), steps_per_epoch, warmup_epochs, warmup_start
    )


def multistep(
    optimizer: Optimizer,
    *,
    num_epochs: float,
    steps_per_epoch: int,
    milestones: Sequence[int] = (30, 60, 80),
    gamma: float = 0.1,
    warmup_epochs: float = 0,
    warmup_start: float = 0.01,
) -> Schedule:
    """Times `gamma` at each epoch of `milestones`."""
    passed = sorted(milestones)

    def after(epoch: float) -> float:
        return gamma ** sum(epoch >= milestone for milestone in passed)

    return _per_step(optimizer, after, steps_per_epoch, warmup_epochs, warmup_start)


def cosine(
    optimizer: Optimizer,
    *,
    num_epochs: float,
    steps_per_epoch: int,
    final_factor: float = 0.0,
    warmup_epochs: float = 0,
    warmup_start: float = 0.01,
) -> Schedule:
    """Half a cosine from the rate to `final_factor` times the rate (Loshchilov and Hutter, SGDR, without restarts)."""

    def after(epoch: float) -> float:
        progress = _progress(epoch, warmup_epochs, num_epochs)
        return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))

    return _per_step(optimizer, after, steps_per_epoch, warmup_epochs, warmup_start)


def poly(
    optimizer: Optimizer,
    *,
    num_epochs: float,
    steps_per_epoch: int,
    power: float = 1.0,
    final_factor: float = 0.0,
    warmup_epochs: float = 0,
    warmup_start: float = 0.01,
) -> Schedule:
    """(1 - progress) to the `power`, down to `final_factor` times the rate."""

    def after(epoch: float) -> float:
        progress = _progress(epoch, warmup_epochs, num_epochs)
        return final_factor + (1 - final_factor) * (1 - progress) ** power

    return _per_step(optimizer, after, steps_per_epoch, warmup_epochs, warmup_start)


def one_cycle(
    optimizer: Optimizer,
    *,
    num_epochs: float,
    steps_per_epoch: int,
    warmup_epochs: float = 0,
    warmup_start: float = 0.04,
    final_factor: float = 1e-4,
    cycle_momentum: bool = True,
) -> Schedule:
    """PyTorch's OneCycleLR (Smith and Topin, Super-Convergence): up in a cosine to the rate, down to almost nothing.

    The way up takes `warmup_epochs`, or .3 of the run when that is 0; the momentum goes the other way, .95 to .85.
    """
    _check_warmup(warmup_epochs, warmup_start)
    # OneCycleLR divides by zero when the way up or the way down has fewer than 2 steps.
    total_steps = max(4, round(num_epochs * steps_per_epoch))
    up = 0.3 * total_steps if warmup_epochs == 0 else warmup_epochs * steps_per_epoch
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=min(max(2, up), total_steps - 2) / total_steps,
        div_factor=1 / warmup_start,
        final_div_factor=warmup_start / final_factor,
        cycle_momentum=cycle_momentum and any(key in optimizer.defaults for key in ("momentum", "betas")),
    )
    return [{"scheduler": scheduler, "interval": "step"}]


def plateau(
    optimizer: Optimizer,
    *,
    num_epochs: float,
    steps_per_epoch: int,
    monitor: str = "val/top1",
    mode: Literal["min", "max"] = "max",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: Literal["rel", "abs"] = "abs",
    min_lr: float = 0.0,
    warmup_epochs: float = 0,
    warmup_start: float = 0.01,
) -> Schedule:
    """Times `factor` when the best `monitor` is more than `patience` validations old (the paper, section 5)."""
    _check_warmup(warmup_epochs, warmup_start)
    reduce = ReduceLROnPlateau(
        optimizer, mode, factor, patience, threshold=threshold, threshold_mode=threshold_mode, min_lr=min_lr
    )
    # The classifier steps it, before the checkpoint is written: Lightning would afterwards, and a resumed run would miss it.
    schedule: Schedule = [{"scheduler": reduce, "interval": "epoch", "frequency": NEVER, "monitor": monitor}]
    if warmup_epochs:
        # LinearLR multiplies the rate that it finds, and leaves it alone after its last step: so both can act on it.
        steps = round(warmup_epochs * steps_per_epoch)
        schedule.insert(0, {"scheduler": LinearLR(optimizer, warmup_start, total_iters=steps), "interval": "step"})
    return schedule


def _per_step(
    optimizer: Optimizer,
    after: Callable[[float], float],
    steps_per_epoch: int,
    warmup_epochs: float,
    warmup_start: float,
) -> Schedule:
    """A linear warm-up, then the factor that `after` gives for the epochs since the start of the run.

    A run that is shorter than its warm-up, as a trial often is, ends in the middle of it.
    """
    _check_warmup(warmup_epochs, warmup_start)
    warmup_steps = round(warmup_epochs * steps_per_epoch)

    # A function, no object: LambdaLR stores the attributes of an object in the checkpoint, which must stay plain data.
    def factor(step: int) -> float:
        if step < warmup_steps:
            return warmup_start + (1 - warmup_start) * step / warmup_steps
        return after(step / steps_per_epoch)

    return [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]


def _progress(epoch: float, start: float, end: float) -> float:
    return 1.0 if epoch >= end else (epoch - start) / (end - start)


def _check_warmup(warmup_epochs: float, warmup_start: float) -> None:
    if warmup_epochs < 0:
        raise ConfigError(f"scheduler.warmup_epochs must be at least 0; got {warmup_epochs}")
    if not 0 < warmup_start <= 1:
        raise ConfigError(f"scheduler.warmup_start must be a factor in (0, 1]; got {warmup_start}")
