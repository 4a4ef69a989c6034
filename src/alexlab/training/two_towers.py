"""Model-parallel training of one net on two devices (`alexlab.models.two_tower`). Checkpoints contain the whole net."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from alexlab.models.two_tower import Tower, merged
from alexlab.training.module import Classifier

NET = "net."  # prefix of the net's parameters in the state dict of the LightningModule


class TwoTowerStrategy(DDPStrategy):
    """Strategy with one tower per process: no gradients are averaged, and both processes see every image.

    Args:
        timeout: maximum time to wait for the other process.
    """

    data_ranks = (1, 0)  # number of ranks that the images are divided among, and this rank among them

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout=timeout)

    def setup(self, trainer: lightning.Trainer) -> None:
        """Set up without DDP's broadcast of rank 0's weights before an evaluation."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().setup(trainer)
            return
        assert self.accelerator is not None and self.model is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.setup_precision_plugin()

    def configure_ddp(self) -> None:
        """Do not wrap the module: no gradients are averaged."""

    @property
    def tower(self) -> Tower:
        """The tower of this process."""
        module = self.lightning_module
        assert isinstance(module, Classifier) and isinstance(module.net, Tower)
        return module.net

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the state dict of the whole net. A collective call."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        net = {name.removeprefix(NET): value for name, value in own.items() if name.startswith(NET)}
        return {**own, **{NET + name: value for name, value in self.merged(net).items()}}

    def merged(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the whole net from those of this tower, such as weights or gradients by name. A collective call."""
        return merged(self._gather_halves({name: value.cpu() for name, value in own.items()}), self.tower.shapes)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state for the whole net. A collective call."""
        own = super().optimizer_state(optimizer)
        names = self._names(optimizer)
        halves = self._gather_halves({index: _on_cpu(state) for index, state in dict(own["state"]).items()})
        state = {}
        for index, first in halves[0].items():
            whole = self.tower.shapes[names[index]]
            part = self.tower.part(names[index], torch.empty(whole, device="meta")).shape
            state[index] = {
                key: torch.cat((value, halves[1][index][key])) if _is_half(value, part, whole) else value
                for key, value in first.items()
            }
        return {**own, "state": state}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this tower's half of the whole net's optimizer state."""
        states = []
        for optimizer, whole in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            names = self._names(optimizer)
            state = {
                index: {
                    key: self.tower.part(names[index], value) if isinstance(value, Tensor) else value
                    for key, value in entry.items()
                }
                for index, entry in whole["state"].items()
            }
            states.append({**whole, "state": state})
        super().load_optimizer_state_dict({"optimizer_states": states})

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Return the names of the parameters, by their index in the optimizer's state."""
        known = {id(parameter): name for name, parameter in self.tower.named_parameters()}
        return [known[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]

    def _gather_halves(self, own: Any) -> tuple[Any, Any]:
        found: list[Any] = [None, None]
        torch.distributed.all_gather_object(found, own)
        return found[0], found[1]


def _is_half(value: Any, part: torch.Size, whole: torch.Size) -> bool:
    return (
        isinstance(value, Tensor) and value.shape != whole and value.dim() == len(whole) and value.shape[1:] == part[1:]
    )


def _on_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.cpu() if isinstance(value, Tensor) else value for key, value in state.items()}
