"""Injection of non-finite losses and gradients."""

from typing import Any

import pytest
import torch

from alexlab.training.module import Classifier

OVERRIDES = ("trainer.max_epochs=3", "callbacks.checkpoint.every_n_steps=1", "augmentation=none", "optimizer=sgd")


def inject(patch: pytest.MonkeyPatch, what: str, value: float, *, step: int, rank: int) -> None:
    """Replace the loss of one step on one rank, or one element of the gradient on all ranks."""
    original = Classifier.training_step

    def training_step(module: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        is_target = (module.global_step, module.global_rank) == (step, rank)
        if is_target and what == "loss":
            forward = module.loss.forward
            module.loss.forward = lambda logits, labels: forward(logits, labels) * value  # type: ignore[method-assign]
        return original(module, batch, batch_idx)

    def on_after_backward(module: Classifier) -> None:
        if module.global_step == step and what == "gradient":
            gradient = module.net.features.conv2.weight.grad
            assert isinstance(gradient, torch.Tensor)
            gradient[0, 0, 0, 0] = value

    patch.setattr(Classifier, "training_step", training_step)
    patch.setattr(Classifier, "on_after_backward", on_after_backward)
