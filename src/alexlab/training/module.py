"""The LightningModule: one for every network, loss, optimizer and schedule."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from alexlab import compat
from alexlab.data.samplers import PADDING, data_ranks, derived_seed
from alexlab.distributed.ddp import HookedDDP
from alexlab.errors import DataError, NumericError
from alexlab.runs.layout import CHECKPOINT_KEY, NOT_FINITE
from alexlab.training import nonfinite
from alexlab.training.checkpoint_io import rescale_progress
from alexlab.training.metrics import ClassificationMetrics
from alexlab.training.param_groups import ParamGroup
from alexlab.training.preprocessing import expand_binary_logits, mean_probs, normalize
from alexlab.training.schedules import Schedule


class Classifier(lightning.LightningModule):
    """Trains and scores a net on batches of uint8 images (N, C, H, W) with labels (N,).

    It logs `train/loss`, `train/top1`, `val/*` and `test/*`; `val/loss` is the plain cross entropy, whatever the loss that
    is minimised, so that runs can be compared.

    Args:
        net: images (N, C, H, W), normalised, to logits (N, K), or (N, 1) for two classes.
        classes: names of the K classes.
        loss: logits and labels, (N,) or probabilities (N, K), to losses (N,).
        optimizer: groups of parameters to an optimizer.
        parameter_groups: the net to those groups.
        schedule: optimizer, num_epochs, steps_per_epoch to Lightning's `lr_scheduler` entries.
        mean, std: one number for each channel, of values in [0, 1].
        mix: images and labels of a training batch to mixed images and probabilities (MixUp, CutMix), or None.
        skips: whether batches may hold images that could not be read, labelled SKIPPED.
        seed: of what is random inside the net, drawn anew for each step and rank.
        record: plain data that goes into each checkpoint, so that a checkpoint is enough.
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
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        skips: bool = False,
        seed: int = 0,
        record: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.optimizer, self.parameter_groups, self.schedule = optimizer, parameter_groups, schedule
        self.mix, self.skips = mix, skips
        self.seed = seed
        self.record = {**(record or {}), "classes": list(classes)}
        # No buffers: a moving average of the weights averages these too, and rounds a constant anew at each step.
        constants = (255 * torch.tensor(mean).view(1, -1, 1, 1), 255 * torch.tensor(std).view(1, -1, 1, 1))
        self.constants = {torch.device("cpu"): constants}  # mean and std on each device that asks for them
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": ClassificationMetrics(len(classes)) for stage in ("train", "val", "test")}
        )
        self.best: dict[str, float] = {}
        self.validated_in_epoch = False  # since the last epoch
        self.nonfinite = nonfinite.NonFiniteDetector()
        self.step_loss: Tensor | None = None  # of the last training step
        self.abort_validation = False  # the validation that runs is left unfinished
        self.train_metrics: dict[str, float] = {}  # scores of the last epoch's training
        self.test_metric_prefix = "test"  # of the names of the scores that `trainer.test` logs
        self.num_scored_images = 0.0  # images of the last split that was scored

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) to logits (N, K)."""
        return self._logits(self._normalised(images))

    def on_train_start(self) -> None:
        """Lays what the optimizer remembers out as the weights are: a fused step takes both by their place in memory.

        An optimizer's state may come from a checkpoint whose weights lay otherwise, and nothing in PyTorch looks.
        """
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes dropout and mixing functions of the seed, the position in the run and the rank, with no state to lose."""
        torch.manual_seed(derived_seed(self.seed, self.current_epoch, batch_idx, data_ranks(self.trainer)[1]))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean loss of a batch."""
        images, labels = self._normalised(batch[0]), batch[1]
        share = len(labels)
        if self.skips:
            images, labels = self._readable(images, labels)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        logits = self._logits(images)
        if self.dtype in (
            torch.float16,
            torch.bfloat16,
        ):  # trainer.precision=bf16-true or 16-true; autocast does so by itself
            logits = logits.float()
        losses = self.loss(logits, labels) if len(labels) else 0 * logits.sum(1)
        # Over the whole share: an image that was skipped counts as nothing, on one device as on several.
        loss = losses.sum() / share
        self._watch(["the loss"], loss[None], batch_idx)
        answers = labels if labels.ndim == 1 else labels.argmax(1)
        self._count("train", logits[: len(answers)], answers, losses[: len(answers)])
        self.step_loss = loss.detach()
        # Not for the bar: Lightning would read it from the device at each step (see `callbacks.ProgressBar`).
        self.log("train/loss_step", self.step_loss, on_epoch=False)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Looks at the gradient of the step, which all ranks share."""
        if self.trainer.precision == "16-mixed":
            return  # its scaler leaves out such steps
        found = [
            (name, parameter.grad) for name, parameter in self.net.named_parameters() if parameter.grad is not None
        ]
        if not found:  # StochasticWeightAveraging passes over the data once more for the norms, without a gradient
            return
        names, gradients = zip(*found, strict=True)
        batch_idx = self.trainer.fit_loop.epoch_loop.batch_idx
        whole = batch_idx % self.trainer.accumulate_grad_batches + 1
        norms = compat.foreach_norms(gradients)
        self._watch([f"the gradient of {name}" for name in names], norms, batch_idx, whole)

    def _watch(self, names: Sequence[str], values: Tensor, batch_idx: int, batches: int = 1) -> None:
        self.nonfinite.record(names, values, step=self.global_step, batch_idx=batch_idx, batches=batches)
        if nonfinite.poll_is_free(values.device):
            self._raise_unless_finite()

    def _raise_unless_finite(self) -> None:
        """Raises NumericError when a loss or a gradient was not finite since the last time."""
        found = self.nonfinite.poll()
        if found is None:
            return
        files = NOT_FINITE.format(rank=self.global_rank)
        strategy = self.trainer.strategy
        halved = isinstance(strategy, HookedDDP) and strategy.options.comm_hook == "fp16"
        other = ", or trainer.comm_hook=bf16: gradients above 65504 overflow in fp16" if halved else ""
        raise NumericError(
            f"{found.name} must stay finite; it is {found.value} at step {found.step} (epoch {self.current_epoch}, "
            f"batch {found.batch_idx}); its images are listed in {files}, and the earlier checkpoints are kept. "
            f"Try a smaller optimizer.lr or a warm-up{other}",
            batches=range(found.batch_idx - found.batches + 1, found.batch_idx + 1),
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the scores of the epoch after its last batch, before the validation."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.is_last_batch or (every and self.global_step % every == 0):
            self._raise_unless_finite()
        if self.trainer.is_last_batch:
            scores = self._finished("train")
            if not scores["count"]:
                raise DataError("no image of the train split could be read")
            self.train_metrics = {f"train/{name}": scores[name].item() for name in ("loss", "top1")}
            self.log_train_metrics()

    def log_train_metrics(self) -> None:
        """Logs the scores of the epoch; a run that is resumed between its last batch and its end does it once more."""
        self._log_exact(self.train_metrics)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._score("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._score("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the scores of the validation split, and of the best validation so far."""
        if self.abort_validation:
            return
        scores = self._log_split("val", self.trainer.num_val_batches)
        if self.trainer.sanity_checking:
            return
        self.validated_in_epoch = True
        if not self.best or scores["top1"] > self.best["top1"]:
            self.best = {**scores, "epoch": self.current_epoch}
        self._log_exact({"best/top1": self.best["top1"], "best/top5": self.best["top5"]})

    def on_train_epoch_end(self) -> None:
        """Steps the schedules that look at a score, after each validation and before the checkpoint."""
        if not self.validated_in_epoch:
            return
        self.validated_in_epoch = False
        for entry in self.trainer.lr_scheduler_configs:
            if entry.monitor is not None and isinstance(entry.scheduler, ReduceLROnPlateau):
                entry.scheduler.step(float(self.trainer.callback_metrics[entry.monitor]))

    def on_test_epoch_end(self) -> None:
        self._log_split("test", self.trainer.num_test_batches)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule over the steps of the whole run."""
        optimizer = self.optimizer(self.parameter_groups(self.net))
        self.trainer.fit_loop.setup_data()  # a run without max_epochs has not asked for its loader yet
        steps = int(self.trainer.estimated_stepping_batches)
        num_batches = self.trainer.num_training_batches
        steps_per_epoch = max(1, -(-int(num_batches) // self.trainer.accumulate_grad_batches))
        schedule = self.schedule(optimizer, num_epochs=steps / steps_per_epoch, steps_per_epoch=steps_per_epoch)
        return [optimizer], schedule

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._raise_unless_finite()
        inside = {
            "validated_in_epoch": self.validated_in_epoch,
            "train_counts": self._stage_metrics("train").gather_state(),
            "train_metrics": self.train_metrics,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
        }
        checkpoint[CHECKPOINT_KEY] = {**self.record, "best": self.best, "mid_epoch": inside}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        rescale_progress(checkpoint, self.trainer.accumulate_grad_batches)
        known = checkpoint[CHECKPOINT_KEY]
        self.best = dict(known["best"])
        mid_epoch = known["mid_epoch"]
        self.validated_in_epoch, self.train_metrics = mid_epoch["validated_in_epoch"], mid_epoch["train_metrics"]
        self._stage_metrics("train").restore_state(mid_epoch["train_counts"])

    def _normalised(self, images: Tensor) -> Tensor:
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

    def _score(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        # In 32 bits whatever the training computes in: the scores are those of the checkpoint, on any number of devices.
        with torch.autocast(images.device.type, enabled=False):
            logits = self(images) if images.ndim == 4 else self._over_views(images)
        losses = F.cross_entropy(logits.float(), labels.clamp(min=0), reduction="none")
        self._count(stage, logits, labels, losses)

    def _count(self, stage: str, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        if self.trainer.global_rank >= data_ranks(self.trainer)[0]:  # another rank counts these images
            labels = torch.full_like(labels, PADDING)
        self._stage_metrics(stage).update(logits, labels, losses)

    def _over_views(self, images: Tensor) -> Tensor:
        """Images (N, V, C, H, W) to the logarithm of the mean of their softmax over the views, (N, K)."""
        probs = mean_probs(self, images)
        return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()

    def _readable(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The part of a batch that could be read; of none, two images and no label, so that the ranks stay in step."""
        keep = labels >= 0
        return (images[keep], labels[keep]) if keep.any() else (images[:2], labels[:0])

    def _finished(self, stage: str) -> dict[str, Tensor]:
        scores = self._stage_metrics(stage).compute()
        self._stage_metrics(stage).reset()
        return scores

    def _log_split(self, stage: str, num_batches: Sequence[int | float]) -> dict[str, float]:
        scores = {name: value.item() for name, value in self._finished(stage).items()}
        loader = self._loader(stage)
        expected = len(loader.dataset)
        complete = not self.trainer.sanity_checking and sum(num_batches) == len(loader)
        if complete and scores["count"] + scores["skipped"] != expected:
            raise DataError(
                f"every image of the {stage} split must be scored once; {scores['count']:g} of {expected} were"
            )
        if not scores["count"]:
            raise DataError(f"no image of the {stage} split could be read")
        self.num_scored_images = scores["count"]
        prefix = self.test_metric_prefix if stage == "test" else stage
        self._log_exact({f"{prefix}/{name}": scores[name] for name in ("loss", "top1", "top5")})
        return scores

    def _loader(self, stage: str) -> Any:
        loaders: Any = self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders
        return loaders

    def _log_exact(self, values: dict[str, Any]) -> None:
        # All ranks hold the same values; their maximum is that value, to the last bit.
        self.log_dict(values, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="max", batch_size=1)
