"""Histograms of weights and gradients in TensorBoard."""

from collections.abc import Iterator, Mapping
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from alexlab.training.loggers import TensorBoard
from alexlab.training.two_towers import TwoTowerStrategy


class Histograms(Callback):
    """Callback that logs a histogram of each weight and of its gradient after an epoch.

    The gradient is that of the last optimizer step, over the global batch, before clipping. Non-finite values,
    such as those of a step that 16-mixed precision skips, are left out.

    Loggers other than TensorBoard get none.

    Args:
        every_n_epochs: epochs between two histograms.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1; got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.is_last_batch and self._is_due(trainer):
            grads = {name: parameter.grad for name, parameter in _parameters(pl_module)}
            found = {name: grad for name, grad in grads.items() if grad is not None}
            _log(trainer, "gradients", found, trainer.global_step + 1)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._is_due(trainer):
            weights = {name: parameter.detach() for name, parameter in _parameters(pl_module)}
            _log(trainer, "weights", weights, trainer.global_step)

    def _is_due(self, trainer: lightning.Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0


def _parameters(module: lightning.LightningModule) -> Iterator[tuple[str, nn.Parameter]]:
    net: Any = module.net
    yield from net.named_parameters()


def _log(trainer: lightning.Trainer, kind: str, values: Mapping[str, Tensor], step: int) -> None:
    """Log tensors by name on rank 0. With two towers, a collective call, because each has half of them."""
    if isinstance(trainer.strategy, TwoTowerStrategy):
        values = trainer.strategy.merged(values)
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoard):
            for name, value in values.items():
                finite = value[value.isfinite()].float().cpu()
                if finite.numel():
                    logger.experiment.add_histogram(f"{kind}/{name}", finite, step)
