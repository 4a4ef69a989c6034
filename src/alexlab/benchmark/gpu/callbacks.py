"""Callbacks that a training of the suite `gpu` writes its findings with."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, record_function

# Calls of the CUDA runtime that make the host wait for the device.
SYNCHRONIZING = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
WINDOW = "between two logging points"


class StepRecorder(Callback):
    """Callback that saves the loss and the gradient of the first step, taken from the momentum of SGD.

    The momentum is the gradient that the optimizer has used, after gradient scaling; without it, the step was skipped.

    Args:
        path: file that is written.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx > 0:
            return
        net: Any = pl_module.net
        loss: Any = pl_module.step_loss
        state = trainer.optimizers[0].state
        found = {
            name: state[parameter]["momentum_buffer"].cpu()
            for name, parameter in net.named_parameters()
            if state[parameter].get("momentum_buffer") is not None
        }
        torch.save({"loss": loss.cpu(), **found}, self.path)


class Poison(Callback):
    """Callback that replaces the weights by NaN before a step.

    Args:
        step: optimizer step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(torch.nan)


class SynchronizationCounter(Callback):
    """Callback that profiles all steps between two logging points and counts the calls that wait for the device.

    Args:
        path: JSON file that is written: the number of steps, of operators, and of calls by name.
        names: names of the counted calls.
    """

    def __init__(self, path: str, names: Sequence[str] = SYNCHRONIZING) -> None:
        self.path, self.names = path, names
        self.profile: Any = None
        self.window: Any = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step == every:  # the step before has been logged
            on_gpu = [ProfilerActivity.CUDA] if pl_module.device.type == "cuda" else []
            self.profile = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            self.profile.start()
            self.window = record_function(WINDOW)
            self.window.__enter__()
        elif trainer.global_step == 2 * every - 1 and self.profile is not None:  # this step will be logged
            self.window.__exit__(None, None, None)
            self.profile.stop()
            found = count_calls(self.profile.events(), self.names)
            Path(self.path).write_text(json.dumps({"steps": every - 1, **found}))
            self.profile = None


def count_calls(events: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the number of all events, and of those of some names with the operators that called them, within the window.

    The profiler itself waits for the device when it stops, after the window.
    """
    (window,) = (event for event in events if event.name == WINDOW and "cuda" not in str(event.device_type).lower())
    inside = [event for event in events if window.time_range.start <= event.time_range.start <= window.time_range.end]
    calls = Counter(
        f"{event.name} in {event.cpu_parent.name if event.cpu_parent else 'no operator'}"
        for event in inside
        if event.name in names
    )
    return {"events": len(inside), "calls": dict(calls)}
