"""Learning-rate schedules: each function returns the `lr_scheduler` entries of one optimizer for Lightning.

All but `from_torch`, which wraps a scheduler of PyTorch, start with a warm-up from `warmup_start` times the learning rate: a
cosine for `one_cycle`, linear for the others. All but `plateau` and `from_torch` are closed-form functions of the optimizer step
and the length of the run, and a checkpoint stores only the step. If a run is resumed with another length, it continues at the
rate that a run of that length has at that step. `constant`, `step`, `multistep` and `plateau` do not depend on the length; the
rate of `cosine`, `poly` and `one_cycle` may jump, upwards if the run gets longer.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau

from alexlab.errors import ConfigError
from alexlab.training.step_schedule import ByStep, Schedule, check_key, check_warmup, per_step

NEVER = 2**62  # frequency, in epochs, that keeps Lightning from stepping a schedule itself
BASE_MOMENTUM, MAX_MOMENTUM = 0.85, 0.95  # defaults of PyTorch's OneCycleLR


def constant(
    optimizer: Optimizer,
    *,
    num_epochs: float,
    steps_per_epoch: int,
    warmup_epochs: float = 0,
    warmup_start: float = 0.01,
) -> Schedule:
    """Return a constant schedule."""
    return per_step(optimizer, lambda epoch: 1.0, steps_per_epoch, warmup_epochs, warmup_start)


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
    """Return a schedule that multiplies by `gamma` every `step_epochs` epochs (torchvision's AlexNet recipe: 0.1 every 30)."""
    check_key(step_epochs >= 1, "step_epochs", "at least 1", step_epochs)
    check_key(gamma > 0, "gamma", "positive", gamma)
    return per_step(
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
    """Return a schedule that multiplies by `gamma` at each epoch of `milestones`, which need not be sorted."""
    check_key(all(milestone > 0 for milestone in milestones), "milestones", "epochs after the first", milestones)
    check_key(gamma > 0, "gamma", "positive", gamma)
    passed = sorted(milestones)

    def after(epoch: float) -> float:
        return gamma ** sum(epoch >= milestone for milestone in passed)

    return per_step(optimizer, after, steps_per_epoch, warmup_epochs, warmup_start)


def cosine(
    optimizer: Optimizer,
    *,
    num_epochs: float,
    steps_per_epoch: int,
    final_factor: float = 0.0,
    warmup_epochs: float = 0,
    warmup_start: float = 0.01,
) -> Schedule:
    """Return a half-cosine decay to `final_factor` times the learning rate (Loshchilov and Hutter, SGDR, no restarts)."""
    check_key(final_factor >= 0, "final_factor", "at least 0", final_factor)

    def after(epoch: float) -> float:
        progress = _progress(epoch, warmup_epochs, num_epochs)
        return _cosine(1.0, final_factor, progress)

    return per_step(optimizer, after, steps_per_epoch, warmup_epochs, warmup_start)


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
    """Return a polynomial decay, (1 - progress) ** power, to `final_factor` times the learning rate."""
    check_key(final_factor >= 0, "final_factor", "at least 0", final_factor)
    check_key(power > 0, "power", "positive", power)

    def after(epoch: float) -> float:
        progress = _progress(epoch, warmup_epochs, num_epochs)
        return final_factor + (1 - final_factor) * (1 - progress) ** power

    return per_step(optimizer, after, steps_per_epoch, warmup_epochs, warmup_start)


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
    """Return PyTorch's OneCycleLR (Smith and Topin, Super-Convergence): a cosine up to the learning rate, then down.

    The increase takes `warmup_epochs`, or 0.3 of the run if that is 0. The momentum moves inversely, between 0.95 and 0.85.
    """
    check_warmup(warmup_epochs, warmup_start)
    check_key(final_factor >= 0, "final_factor", "at least 0", final_factor)
    last = max(4, round(num_epochs * steps_per_epoch)) - 1
    up = 0.3 * (last + 1) if warmup_epochs == 0 else warmup_epochs * steps_per_epoch
    top = min(max(2, up), last - 1) - 1  # step of the highest rate

    def between(step: int, start: float, middle: float, end: float) -> float:
        if step <= top:
            return _cosine(start, middle, step / top)
        return _cosine(middle, end, min(1.0, (step - top) / (last - top)))

    def factor(step: int) -> float:
        return between(step, warmup_start, 1.0, final_factor)

    def momentum(step: int) -> float:
        return between(step, MAX_MOMENTUM, BASE_MOMENTUM, MAX_MOMENTUM)

    cycles = cycle_momentum and any(key in optimizer.defaults for key in ("momentum", "betas"))
    return [{"scheduler": ByStep(optimizer, factor, steps_per_epoch, momentum if cycles else None), "interval": "step"}]


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
    cooldown: int = 0,
    min_lr: float = 0.0,
    warmup_epochs: float = 0,
    warmup_start: float = 0.01,
) -> Schedule:
    """Return a schedule that multiplies by `factor` after more than `patience` validations without a better `monitor`.

    After each reduction, `cooldown` validations are not counted, as in PyTorch's ReduceLROnPlateau; Keras' callback of that name
    needs a positive cooldown to be larger by one, since it counts the epoch in which its cooldown ends.

    The AlexNet paper, section 5, divides the rate by 10 whenever the validation error stops improving.
    """
    check_warmup(warmup_epochs, warmup_start)
    check_key(0 < factor < 1, "factor", "between 0 and 1", factor)
    _check_no_layer_lrs(optimizer, "plateau")
    check_key(patience >= 0, "patience", "at least 0", patience)
    check_key(cooldown >= 0, "cooldown", "at least 0", cooldown)
    check_key(mode in ("min", "max"), "mode", "min or max", mode)
    check_key(threshold_mode in ("rel", "abs"), "threshold_mode", "rel or abs", threshold_mode)
    check_key(threshold >= 0, "threshold", "at least 0", threshold)
    check_key(min_lr >= 0, "min_lr", "at least 0", min_lr)
    reduce = ReduceLROnPlateau(
        *(optimizer, mode, factor, patience),
        threshold=threshold,
        threshold_mode=threshold_mode,
        cooldown=cooldown,
        min_lr=min_lr,
    )
    # The LightningModule steps it before the checkpoint is written; Lightning would do so afterwards, and a resumed run
    # would lose that step.
    schedule: Schedule = [{"scheduler": reduce, "interval": "epoch", "frequency": NEVER, "monitor": monitor}]
    if warmup_epochs:
        steps = max(1, round(warmup_epochs * steps_per_epoch))
        # LinearLR scales the current rate and stops after its last step, so it combines with ReduceLROnPlateau.
        schedule.insert(0, {"scheduler": LinearLR(optimizer, warmup_start, total_iters=steps), "interval": "step"})
    return schedule


def from_torch(
    scheduler: type[LRScheduler],
    optimizer: Optimizer,
    *,
    num_epochs: float,
    steps_per_epoch: int,
    interval: Literal["epoch", "step"] = "epoch",
    monitor: str | None = None,
    **arguments: Any,
) -> Schedule:
    """Return a schedule that is a scheduler of PyTorch, or of the same base class.

    Args:
        scheduler: class of the scheduler.
        interval: `step` to advance it after each optimizer step instead of each epoch.
        monitor: metric of ReduceLROnPlateau.
        arguments: arguments of the class besides the optimizer.
    """
    _check_no_layer_lrs(optimizer, scheduler.__name__)
    is_plateau = issubclass(scheduler, ReduceLROnPlateau)
    check_key(interval in ("epoch", "step"), "interval", "epoch or step", interval)
    check_key(
        is_plateau == (monitor is not None), "monitor", "a metric for ReduceLROnPlateau, null for others", monitor
    )
    check_key(not is_plateau or interval == "epoch", "interval", "epoch for ReduceLROnPlateau", interval)
    try:
        made = scheduler(optimizer, **arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"scheduler: {error}") from error
    if interval == "step":
        return [{"scheduler": made, "interval": "step"}]
    entry = {
        "scheduler": made,
        "interval": "epoch",
        "frequency": NEVER,
    }  # stepped by the LightningModule, as plateau is
    return [entry | ({"monitor": monitor} if is_plateau else {})]


def _progress(epoch: float, start: float, end: float) -> float:
    return 1.0 if epoch >= end else (epoch - start) / (end - start)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _check_no_layer_lrs(optimizer: Optimizer, name: str) -> None:
    if any("lr_changes" in group for group in optimizer.param_groups):
        raise ConfigError(
            f"param_groups.layer_lrs needs a schedule that is a function of the epoch, such as multistep or cosine; got {name}"
        )
