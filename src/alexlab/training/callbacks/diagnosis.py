"""Diagnosis of a loss that does not fall within the first steps of a training, and of dead outputs."""

import logging
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from alexlab.models.two_tower import Tower
from alexlab.records.disk_errors import RunFileWriter
from alexlab.records.record import RunRecord
from alexlab.training.diagnosis import State, describe, describe_dead_outputs, guessing_loss
from alexlab.training.measurement import Signal, WeightSamples, measure_signal
from alexlab.training.module import Classifier

MIN_STEPS = 20  # a shorter training is not diagnosed
WINDOW = 0.2  # fraction of the steps, the last ones, whose mean loss is compared with that of guessing
MAX_IMAGES = 16  # images whose activations are measured: two passes of 2 s for VGG11 at 224 px on 2 cores

log = logging.getLogger(__name__)


class Diagnosis(RunFileWriter, Callback):
    """Callback that warns of a loss that is still that of guessing, with the measured cause and a remedy, and of dead outputs.

    Rank 0 compares the activations of some training images, and the weights, before the first step and after `after_steps`.
    Neither communicates with other ranks nor changes the training. A resumed run and a net divided into two towers are not
    diagnosed. The first validation of an attempt in which some classes have the same logit for all images of rank 0 warns too.

    Args:
        after_steps: optimizer steps before the diagnosis; a shorter run is diagnosed after its last step.
    """

    def __init__(self, after_steps: int = 100) -> None:
        if after_steps < MIN_STEPS:
            raise ValueError(f"after_steps must be at least {MIN_STEPS}; got {after_steps}")
        self.after_steps = after_steps
        self.last_step = 0  # step of the diagnosis; 0 for none
        self.images: Tensor | None = None  # of the first batch
        self.losses: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.num_images = 0
        self.first_lr = 0.0  # rate of the first step
        self.first_change = 0.0  # change of the weights in the first step, at the base rate
        self.state: State | None = None  # of the diagnosed training
        self.found: list[str] = []  # what this attempt has reported
        self.warned_of_outputs = False  # True once dead outputs have been reported
        self.lowest: Tensor | None = None  # logit of each class in this validation
        self.highest: Tensor | None = None
        self.num_scored: Tensor | int = 0  # images with a label

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        steps = min(self.after_steps, trainer.estimated_stepping_batches)
        is_whole = isinstance(pl_module, Classifier) and not isinstance(pl_module.net, Tower)
        if trainer.is_global_zero and trainer.global_step == 0 and is_whole and steps >= MIN_STEPS:
            self.last_step = int(steps)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.last_step or self.images is not None:
            return
        images = batch[0][batch[1] >= 0][:MAX_IMAGES].clone()  # without unreadable ones
        if len(images) < 2:
            self.last_step = 0
            return
        assert isinstance(pl_module, Classifier)
        self.images, self.weights = images, WeightSamples(pl_module.net)
        self.start: Signal = measure_signal(pl_module, images)
        self.first_lr = _lr(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.last_step:
            return
        assert isinstance(pl_module, Classifier)
        self.num_images += len(batch[1]) * trainer.world_size
        if pl_module.step_loss is not None:
            self.losses.append(pl_module.step_loss)
            self.labels.append(batch[1].clone())
        if trainer.global_step == 1 and self.first_change == 0 and self.first_lr:
            self.first_change = self.weights.change_per_step(1) * _base_lr(trainer) / self.first_lr
        if trainer.global_step >= self.last_step:
            self.state = self._measure(trainer, pl_module)
            self.last_step, self.losses, self.labels = 0, [], []
            self.report(trainer, describe(self.state, pl_module.record.get("config", {}).get("model", {})))

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.lowest, self.highest, self.num_scored = None, None, 0

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.warned_of_outputs or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Classifier)
        # The step of a class of the user may return something else than logits.
        if not isinstance(outputs, Tensor) or outputs.shape[1:] != (len(pl_module.record["classes"]),):
            return
        low, high = outputs.aminmax(dim=0)
        self.lowest = low if self.lowest is None else torch.minimum(self.lowest, low)
        self.highest = high if self.highest is None else torch.maximum(self.highest, high)
        self.num_scored = self.num_scored + (batch[1] >= 0).sum()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.lowest is None or self.highest is None or trainer.sanity_checking:
            return
        assert isinstance(pl_module, Classifier)
        text = describe_dead_outputs(self.lowest, self.highest, pl_module.record["classes"], int(self.num_scored))
        if text is not None:
            self.warned_of_outputs = True
            self.report(trainer, (True, f"after {trainer.global_step} steps {text}"))

    def report(self, trainer: lightning.Trainer, found: tuple[bool, str] | None) -> None:
        """Log what was found, and add it to the run record."""
        if found is None:
            return
        has_cause, text = found
        self.found.append(text)
        log.log(logging.WARNING if has_cause else logging.INFO, "%s", text)
        record = RunRecord(Path(trainer.default_root_dir))
        with self.writing(record.path):
            record.update(diagnosis="; ".join(self.found))

    def _measure(self, trainer: lightning.Trainer, module: Classifier) -> State:
        assert self.images is not None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        counts = data.splits.train.class_counts()
        used = [min(count, 1) for count in counts]
        window = slice(-max(1, round(WINDOW * len(self.losses))), None)
        last, labels = self.losses[window], torch.cat(self.labels[window])
        return State(
            loss=sum(loss.item() for loss in last) / len(last),
            guessing=guessing_loss(module.loss, used if data.config.sampler == "balanced" else counts, labels),
            num_classes=len(counts),
            images_per_class=self.num_images / len(counts),
            classes_seen=sum(used),
            num_steps=self.last_step,
            start=self.start,
            now=measure_signal(module, self.images),
            change=self.weights.change_per_step(self.last_step),
            growth=self.weights.growth(),
            first_change=self.first_change,
            lr=trainer.optimizers[0].defaults.get("lr", _base_lr(trainer)),  # optimizer.lr, which the advice changes
            warming_up=self.first_lr < _lr(trainer) < _base_lr(trainer) / 2,
        )


def _lr(trainer: lightning.Trainer) -> float:
    """Return the largest learning rate of the next step."""
    return max(group["lr"] for group in trainer.optimizers[0].param_groups)


def _base_lr(trainer: lightning.Trainer) -> float:
    """Return the largest learning rate now and apart from the schedule."""
    return max(max(group["lr"], group.get("initial_lr", 0.0)) for group in trainer.optimizers[0].param_groups)
