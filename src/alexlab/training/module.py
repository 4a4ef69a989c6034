"""The LightningModule, shared by all nets, losses, optimizers and schedules."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric

from alexlab import compat
from alexlab.data.image_file import none_readable
from alexlab.data.labels import PADDING
from alexlab.data.samplers import data_ranks, derived_seed
from alexlab.distributed.ddp import HookedDDP
from alexlab.errors import DataError
from alexlab.records.layout import CHECKPOINT_KEY, MEAN_IMAGE
from alexlab.records.optimized import MODES, OptimizedMetric
from alexlab.training import nonfinite
from alexlab.training.checkpoint_io import keep_raw_weights, reopen_epoch, rescale_progress
from alexlab.training.collector import PredictionCollector
from alexlab.training.metrics import ClassificationMetrics, ExtraMetrics, evaluate_batch
from alexlab.training.param_groups import ParamGroup
from alexlab.training.preprocessing import drop_unreadable, expand_binary_logits, normalize, pixel_levels
from alexlab.training.schedules import NEVER
from alexlab.training.step_schedule import Schedule


class Classifier(lightning.LightningModule):
    """Image classifier, trained on batches of uint8 images (N, C, H, W) with labels (N,).

    Logs `train/loss`, `train/top1`, `val/*` and `test/*`. `val/loss` and `test/loss` are always the plain cross entropy, so
    that runs with different training losses can be compared.

    Args:
        net: maps normalized images (N, C, H, W) to logits (N, K), or (N, 1) for two classes.
        classes: names of the K classes.
        loss: maps logits and labels, (N,) or probabilities (N, K), to losses (N,).
        optimizer: maps parameter groups to an optimizer.
        parameter_groups: maps the net to parameter groups.
        schedule: maps optimizer, num_epochs and steps_per_epoch to Lightning's `lr_scheduler` entries.
        mean, std: one number per channel, for pixel values in [0, 1].
        mean_image: image (C, H, W) to subtract instead of `mean`; stored in each checkpoint, and replaced by that of a checkpoint
            from which a run is resumed.
        mix: maps the images and labels of a training batch to mixed images and probabilities (MixUp, CutMix), or None.
        extra_metrics: metrics of val and test besides loss, top1 and top5, by name.
        optimized_metric: the metric of the validation split that decides which epoch is the best; None for val/top1.
        skip_unreadable: whether training batches may contain unreadable images, labelled UNREADABLE.
        val_precision: `auto` to validate in the training precision, as Lightning does; `32` in 32 bits, if the weights have
            them. Tests are always in the precision of the weights.
        seed: seed of dropout and mixing, combined with the epoch, the batch and the rank.
        record: plain data about the run to store in each checkpoint, so that a checkpoint is self-contained.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        classes: Sequence[str],
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        parameter_groups: Callable[[nn.Module], list[ParamGroup]],
        schedule: Callable[..., Schedule],
        mean: Sequence[float],
        std: Sequence[float],
        mean_image: Tensor | None = None,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        extra_metrics: Mapping[str, Metric] | None = None,
        optimized_metric: OptimizedMetric | None = None,
        skip_unreadable: bool = False,
        val_precision: str = "auto",
        seed: int = 0,
        record: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.optimizer, self.parameter_groups, self.schedule = optimizer, parameter_groups, schedule
        self.mix, self.skip_unreadable = mix, skip_unreadable
        self.val_precision = val_precision
        self.seed = seed
        self.record = {**(record or {}), "classes": list(classes)}
        self.mean_image = mean_image
        # Not buffers: EMA would average them with the weights and add a rounding error at each step.
        constants = pixel_levels(mean if mean_image is None else mean_image), pixel_levels(std)
        self.constants = {torch.device("cpu"): constants}  # mean and std by device
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": ClassificationMetrics(len(classes)) for stage in ("train", "val", "test")}
        )
        self.extra_metrics = nn.ModuleDict({stage: ExtraMetrics(extra_metrics or {}) for stage in ("val", "test")})
        self.optimized = optimized_metric or OptimizedMetric()
        self.best: dict[str, float] = {}  # scores of the best validation, with its `epoch`, from 1, and `step`
        self.validated_in_epoch = False  # a validation has finished since the last epoch ended
        self.val_metrics: dict[str, float] = {}  # metrics that this validation logged
        self.nonfinite = nonfinite.NonFiniteDetector()
        self.step_loss: Tensor | None = None  # loss of the last training step
        self.abort_validation = False  # set by PreemptionCallback: the current validation is incomplete
        self.train_metrics: dict[str, float] = {}  # training metrics of the last finished epoch
        self.test_metric_prefix = "test"  # prefix of the metrics that `trainer.test` logs
        self.scored: dict[str, float] = {}  # metrics of the last evaluated split
        self.collector: PredictionCollector | None = None  # of the predictions of `trainer.test`

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, C, H, W) to logits (N, K)."""
        return self._logits(self.normalize(images))

    def on_train_start(self) -> None:
        """Copy the optimizer's state to the memory format of the weights.

        Fused optimizers index both by memory offset. State from a checkpoint may have another memory format, which PyTorch
        does not check.
        """
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)

    def on_train_epoch_start(self) -> None:
        """Forget the metrics of earlier epochs, which Lightning keeps: an epoch without validation has no scores."""
        self.trainer.callback_metrics.clear()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout and mixing by (seed, epoch, batch, rank), so that resuming needs no generator state."""
        torch.manual_seed(derived_seed(self.seed, self.current_epoch, batch_idx, data_ranks(self.trainer)[1]))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        images, labels = self.normalize(batch[0]), batch[1]
        num_images = len(labels)
        if self.skip_unreadable:
            images, labels = drop_unreadable(images, labels)
        if self.mix is not None and len(images) == len(labels):
            images, labels = self.mix(images, labels)
        logits = self._logits(images)
        if self.dtype in (torch.float16, torch.bfloat16):  # precision=bf16-true or 16-true; autocast casts by itself
            logits = logits.float()
        losses = self.loss(logits[: len(labels)], labels) if len(labels) else 0 * logits.sum(1)
        # Divided by the full batch size, so that an unreadable image contributes 0 on any number of devices.
        loss = losses.sum() / num_images
        self._record_values(["the loss"], loss[None], batch_idx)
        targets = labels if labels.ndim == 1 else labels.argmax(1)
        self._count("train", logits[: len(targets)], targets, losses[: len(targets)])
        self.step_loss = loss.detach()
        # Without prog_bar=True, which would synchronize with the device at each step (see callbacks/progress.py).
        self.log("train/loss_step", self.step_loss, on_epoch=False)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Check the gradient of the step, which is the same on all ranks."""
        if self.trainer.precision == "16-mixed":
            return  # its gradient scaler skips steps with non-finite gradients
        gradients = {name: param.grad for name, param in self.net.named_parameters() if param.grad is not None}
        batch_idx = self.trainer.fit_loop.epoch_loop.batch_idx
        num_accumulated = batch_idx % self.trainer.accumulate_grad_batches + 1
        norms = compat.foreach_norms(list(gradients.values()))
        self._record_values([f"the gradient of {name}" for name in gradients], norms, batch_idx, num_accumulated)

    def _record_values(self, names: Sequence[str], values: Tensor, batch_idx: int, batches: int = 1) -> None:
        self.nonfinite.record(names, values, step=self.global_step, batch_idx=batch_idx, batches=batches)
        if nonfinite.poll_is_free(values.device):
            self._raise_unless_finite()

    def _raise_unless_finite(self) -> None:
        """Raise NumericError if a loss or a gradient has not been finite since the last call."""
        found = self.nonfinite.poll()
        if found is None:
            return
        strategy = self.trainer.strategy
        is_fp16 = isinstance(strategy, HookedDDP) and strategy.options.comm_hook == "fp16"
        hint = ", or trainer.comm_hook=bf16: gradients above 65504 overflow in fp16" if is_fp16 else ""
        raise found.error(epoch=self.current_epoch + 1, rank=self.global_rank, hint=hint)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the training metrics after the last batch of an epoch, before the validation."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.is_last_batch or (every and self.global_step % every == 0):
            self._raise_unless_finite()
        if self.trainer.is_last_batch:
            scores = self._compute_and_reset("train")
            if not scores["count"]:
                raise none_readable("the train split")
            self.train_metrics = {f"train/{name}": scores[name].item() for name in ("loss", "top1")}
            self.log_train_metrics()
            lost = not self.val_metrics.keys() <= self.trainer.callback_metrics.keys()  # resumed after this validation
            if self.validated_in_epoch and lost and not compat.validation_is_due(self.trainer):
                self._log_exact(self.val_metrics)

    def log_train_metrics(self) -> None:
        """Log the training metrics of the epoch; repeated in a run resumed between its last batch and its end."""
        self._log_exact(self.train_metrics)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Score a batch and return its logits (N, K) for callbacks."""
        return self._score("val", batch, autocast=self.val_precision == "auto")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self._score("test", batch)
        if self.collector is not None:
            self.collector.add(logits, batch[1])

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split and of the best validation so far."""
        if self.abort_validation:
            return
        scores = self._log_split("val", self.trainer.num_val_batches)
        if self.trainer.sanity_checking:
            return
        if not self.best or self._rank(scores) > self._rank(self.best):
            best = {**scores, "epoch": self.current_epoch + 1, "step": self.global_step}
            self.best = {name: value for name, value in best.items() if not math.isnan(value)}
        best = {f"best/{name}": self.best[name] for name in self.scored_names if name in self.best}
        self._log_exact(best)
        if not compat.validation_is_scheduled(self.trainer):
            return  # a longer run does not have this validation
        self.validated_in_epoch = True
        self.val_metrics = {**{f"val/{name}": scores[name] for name in self.scored_names}, **best}
        for entry in self.trainer.lr_scheduler_configs:
            if isinstance(entry.scheduler, ReduceLROnPlateau) and entry.monitor in self.val_metrics:
                entry.scheduler.step(self.val_metrics[entry.monitor])

    def _rank(self, scores: Mapping[str, float]) -> tuple[float, float]:
        return self.optimized.rank(scores.get(self.optimized.key), scores.get("loss"))

    @property
    def scored_names(self) -> list[str]:
        """The names of the metrics of a split."""
        return [*MODES, *self.extra_metrics["val"].by_name]  # type: ignore[misc]

    def on_train_epoch_end(self) -> None:
        """Step the schedulers with the interval `epoch`, but not ReduceLROnPlateau of a metric of the validation."""
        if not self.trainer.is_last_batch:
            return  # cut short by a limit; a resumed run completes the epoch, see `reopen_epoch`
        self.validated_in_epoch = False
        for entry in self.trainer.lr_scheduler_configs:
            # Not a second time in a run that is resumed from the checkpoint of this epoch's end.
            is_due = entry.frequency == NEVER and entry.scheduler.last_epoch <= self.current_epoch
            if not is_due:
                continue
            if not isinstance(entry.scheduler, ReduceLROnPlateau):
                entry.scheduler.step()
            elif entry.monitor in self.train_metrics:
                entry.scheduler.step(self.train_metrics[entry.monitor])

    def on_test_epoch_end(self) -> None:
        self._log_split("test", self.trainer.num_test_batches)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule over all steps of the run."""
        optimizer = self.optimizer(self.parameter_groups(self.net))
        self.trainer.fit_loop.setup_data()  # without max_epochs, Lightning has not loaded the dataloader yet
        steps = int(self.trainer.estimated_stepping_batches)
        num_batches = self.trainer.num_training_batches
        steps_per_epoch = max(1, -(-int(num_batches) // self.trainer.accumulate_grad_batches))
        schedule = self.schedule(optimizer, num_epochs=steps / steps_per_epoch, steps_per_epoch=steps_per_epoch)
        return [optimizer], schedule

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._raise_unless_finite()
        val_metrics = self.val_metrics if self.validated_in_epoch else {}
        inside = {
            "validated_in_epoch": self.validated_in_epoch,
            "val_metrics": {name: value for name, value in val_metrics.items() if not math.isnan(value)},
            "train_counts": self._stage_metrics("train").gather_state(),
            "train_metrics": self.train_metrics,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
        }
        checkpoint[CHECKPOINT_KEY] = {**self.record, "best": self.best, "mid_epoch": inside}
        if self.mean_image is not None:
            checkpoint[CHECKPOINT_KEY][MEAN_IMAGE] = self.mean_image

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        reopen_epoch(checkpoint)
        rescale_progress(checkpoint, self.trainer.accumulate_grad_batches)
        keep_raw_weights(checkpoint, self.trainer.callbacks)  # type: ignore[attr-defined]
        known = checkpoint[CHECKPOINT_KEY]
        if self.mean_image is not None:
            self.mean_image = known[MEAN_IMAGE]
            cpu = torch.device("cpu")
            self.constants = {cpu: (pixel_levels(self.mean_image), self.constants[cpu][1])}
        self.best = dict(known["best"])
        mid_epoch = known["mid_epoch"]
        self.validated_in_epoch, self.train_metrics = mid_epoch["validated_in_epoch"], mid_epoch["train_metrics"]
        self.val_metrics = mid_epoch["val_metrics"]
        self._stage_metrics("train").restore_state(mid_epoch["train_counts"])

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize uint8 images (N, C, H, W), on any device."""
        if images.device not in self.constants:
            mean, std = self.constants[torch.device("cpu")]
            self.constants[images.device] = mean.to(images.device), std.to(images.device)
        return normalize(images, *self.constants[images.device])

    def _logits(self, images: Tensor) -> Tensor:
        return expand_binary_logits(self.net(images.to(self.dtype)))

    def _stage_metrics(self, stage: str) -> ClassificationMetrics:
        scores = self.metrics[f"{stage}_metrics"]
        assert isinstance(scores, ClassificationMetrics)
        return scores

    def _score(self, stage: str, batch: tuple[Tensor, Tensor], *, autocast: bool = False) -> Tensor:
        images, labels = batch
        logits, losses = evaluate_batch(self, images, labels, autocast=autocast)
        self._count(stage, logits, labels, losses)
        self.extra_metrics[stage].update(logits, labels)  # type: ignore[operator]
        return logits

    def _count(self, stage: str, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        if self.trainer.global_rank >= data_ranks(self.trainer)[0]:  # another rank counts the same images
            labels = torch.full_like(labels, PADDING)
        self._stage_metrics(stage).update(logits, labels, losses)

    def _compute_and_reset(self, stage: str) -> dict[str, Tensor]:
        scores = self._stage_metrics(stage).compute()
        self._stage_metrics(stage).reset()
        return scores

    def _log_split(self, stage: str, num_batches: Sequence[int | float]) -> dict[str, float]:
        scores = {name: value.item() for name, value in self._compute_and_reset(stage).items()}
        extra: dict[str, float] = self.extra_metrics[stage].compute_and_reset()  # type: ignore[operator]
        loader = self._loader(stage)
        expected = len(loader.dataset)
        complete = not self.trainer.sanity_checking and sum(num_batches) == len(loader)
        if complete and scores["count"] + scores["skipped"] != expected:
            raise DataError(
                f"every image of the {stage} split must be scored once; {scores['count']:g} of {expected} were"
            )
        if not scores["count"]:
            raise none_readable(f"the {stage} split")
        self.scored = scores | extra
        prefix = self.test_metric_prefix if stage == "test" else stage
        self._log_exact({f"{prefix}/{name}": self.scored[name] for name in self.scored_names})
        return self.scored

    def _loader(self, stage: str) -> Any:
        loaders: Any = self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders
        return loaders

    def _log_exact(self, values: dict[str, Any]) -> None:
        # All ranks have the same values: unlike their mean, their maximum is exact.
        self.log_dict(values, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="max", batch_size=1)
