"""Losses and gradients that are not finite."""

from typing import Any

import pytest
import torch

from alexlab.training.module import Classifier

WORDS = ("trainer.max_epochs=3", "callbacks.checkpoint.every_n_steps=1", "augmentation=none", "optimizer=sgd")


def spoil(patch: pytest.MonkeyPatch, what: str, value: float, *, step: int, rank: int) -> None:
    """Puts a value into the loss of one step of one rank, or into the gradient that all share."""
    own = Classifier.training_step

    def training_step(module: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        here = (module.global_step, module.global_rank) == (step, rank)
        if here and what == "loss":
            monkey = module.loss.forward
            module.loss.forward = lambda logits, labels: monkey(logits, labels) * value  # type: ignore[method-assign]
        return own(module, batch, batch_idx)

    def on_after_backward(module: Classifier) -> None:
        if module.global_step == step and what == "gradient":
            gradient = module.net.features.conv2.weight.grad
            assert isinstance(gradient, torch.Tensor)
            gradient[0, 0, 0, 0] = value

    patch.setattr(Classifier, "training_step", training_step)
    patch.setattr(Classifier, "on_after_backward", on_after_backward)
