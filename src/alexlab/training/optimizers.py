"""Optimizers that PyTorch lacks."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from alexlab.errors import ConfigError


class VelocitySGD(Optimizer):
    """SGD whose momentum is a velocity, v := momentum v - weight_decay lr w - lr g, w := w + v (2012 paper, section 5).

    `torch.optim.SGD` accumulates gradients and multiplies their sum by the rate of the step. Both are the same while the rate
    is constant. When it is divided by 10, that sum is divided too, whereas a velocity keeps its length and decays by
    `momentum` per step. A parameter with the rate 0 does not move (`Weights::update` in the authors' weights.cu).

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        momentum: factor of the velocity, in [0, 1).
        weight_decay: factor of the weights in the gradient.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(self, params: Any, lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 5e-4) -> None:
        if not 0 <= momentum < 1:
            raise ConfigError(f"optimizer.momentum must be in [0, 1); got {momentum}")
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ConfigError(f"optimizer.{name} must be at least 0; got {value}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, and return the result of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr = group["lr"]
            if not lr:
                continue
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity = state["velocity"].mul_(group["momentum"])
                velocity.add_(parameter, alpha=-lr * group["weight_decay"]).add_(parameter.grad, alpha=-lr)
                parameter.add_(velocity)
        return loss
