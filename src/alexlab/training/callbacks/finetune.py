"""Finetuning with some parts of the net frozen, permanently or for the first epochs."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.optim import SGD, Optimizer

from alexlab.errors import ConfigError

log = logging.getLogger(__name__)


class Finetune(Callback):
    """Callback that freezes parts of the net: they get no gradients, and their batch norms keep their statistics.

    What is frozen depends only on the epoch, so a resumed run needs no extra state.

    Args:
        freeze: one or several names of submodules, such as `features`, `features.conv1` or `classifier.fc6`.
        unfreeze_epoch: number of epochs after which everything is trained; None keeps the parts frozen.
    """

    def __init__(self, freeze: str | Sequence[str], unfreeze_epoch: int | None = None) -> None:
        self.freeze = [freeze] if isinstance(freeze, str) else list(freeze)
        self.unfreeze_epoch = unfreeze_epoch
        if unfreeze_epoch is not None and unfreeze_epoch < 1:
            raise ValueError(f"unfreeze_epoch must be at least 1; got {unfreeze_epoch}")

    def check(self, net: nn.Module) -> None:
        """Raise ConfigError unless every name is a submodule of the net and something is left to train."""
        known = dict(net.named_modules())
        for name in self.freeze:
            if name not in known or not name:
                parts = [part for part, module in known.items() if part and next(module.parameters(), None) is not None]
                raise ConfigError(
                    f"callbacks.finetune.freeze must name modules of the net: {', '.join(parts)}; got {name!r}"
                )
        frozen = {id(parameter) for module in self._modules(net) for parameter in module.parameters()}
        if all(id(parameter) in frozen for parameter in net.parameters()):
            until = "" if self.unfreeze_epoch is None else " before callbacks.finetune.unfreeze_epoch"
            raise ConfigError(
                f"callbacks.finetune.freeze={self.freeze} leaves nothing to train{until}; freeze fewer modules"
            )

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Freeze before DistributedDataParallel registers the gradients that it averages."""
        if stage == "fit":
            self._set(pl_module, requires_grad=False)
            count = sum(p.numel() for p in pl_module.parameters() if not p.requires_grad)
            until = "" if self.unfreeze_epoch is None else f" for {self.unfreeze_epoch} epochs"
            log.info("frozen%s: %s, %s parameters", until, ", ".join(self.freeze), f"{count:,}")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Act here too: Lightning skips `on_train_epoch_start` in an epoch that is resumed in the middle."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Put frozen parts into eval mode, so that their norms keep their statistics; unfreeze them at `unfreeze_epoch`."""
        if self.unfreeze_epoch is None or trainer.current_epoch < self.unfreeze_epoch:
            for module in self._modules(pl_module.net):
                module.eval()
            return
        if all(p.requires_grad for module in self._modules(pl_module.net) for p in module.parameters()):
            return
        self._set(pl_module, requires_grad=True)
        for module in self._modules(pl_module.net):
            module.train()  # after a validation, Lightning restores the eval mode that it found
        for optimizer in trainer.optimizers:
            _start_momentum(optimizer)
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy):
            # DistributedDataParallel built its buckets without these gradients, so the module is wrapped again.
            strategy.model = pl_module
            strategy.configure_ddp()
        log.info("epoch %d: %s unfrozen", trainer.current_epoch + 1, ", ".join(self.freeze))

    def _modules(self, net: Any) -> list[nn.Module]:
        return [net.get_submodule(name) for name in self.freeze]

    def _set(self, pl_module: Any, *, requires_grad: bool) -> None:
        for module in self._modules(pl_module.net):
            module.requires_grad_(requires_grad)


def _start_momentum(optimizer: Optimizer) -> None:
    """Set missing momentum buffers to zero: fused SGD needs a buffer for every parameter or for none."""
    for group in optimizer.param_groups:
        if isinstance(optimizer, SGD) and group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
