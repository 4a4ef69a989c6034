"""Detection of NaN and infinity in losses, gradients and weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from alexlab.errors import NumericError
from alexlab.output.csv_files import write_csv
from alexlab.records.disk_errors import RunFileWriter
from alexlab.records.layout import NOT_FINITE
from alexlab.training.metrics import widest_float


@dataclass(frozen=True)
class NonFiniteValue:
    """A loss or gradient norm that is NaN or infinite.

    Args:
        name: such as `the loss` or `the gradient of fc6.weight`.
        value: NaN or infinity.
        step: optimizer step.
        batch_idx: batch of this rank within its epoch.
        batches: number of batches, up to and including `batch_idx`, that may have caused it.
    """

    name: str
    value: float
    step: int
    batch_idx: int
    batches: int

    def error(self, *, epoch: int, rank: int, hint: str) -> NumericError:
        """Return the error that ends the run.

        Args:
            epoch: number of the epoch, from 1.
            rank: global rank.
            hint: further advice, appended to the message.
        """
        return NumericError(
            f"{self.name} must stay finite; it is {self.value} at step {self.step} (epoch {epoch}, batch {self.batch_idx}); "
            f"its images are listed in {NOT_FINITE.format(rank=rank)}, and the earlier checkpoints are kept. "
            f"Try a smaller optimizer.lr or a warm-up{hint}",
            batches=range(self.batch_idx - self.batches + 1, self.batch_idx + 1),
        )


class NonFiniteDetector:
    """Detector that keeps the first non-finite value on its device until it is polled.

    Polling synchronizes the host with the device, so it should be rare on a GPU; on the CPU it is free.
    """

    def __init__(self) -> None:
        self.notes: list[tuple[Sequence[str], int, int, int]] = []
        # (index of the note, index within the note, value) of the first non-finite value; the first index is -1 before.
        self.first: Tensor | None = None

    def record(self, names: Sequence[str], values: Tensor, *, step: int, batch_idx: int, batches: int = 1) -> None:
        """Check values on their device without synchronizing.

        Args:
            names: names of the P values.
            values: values (P,).
            step, batch_idx, batches: see `NonFiniteValue`.
        """
        widest = widest_float(values.device.type)
        values = values.detach().to(widest)
        if self.first is None:
            self.first = torch.tensor([-1.0, 0.0, 0.0], dtype=widest).to(values.device, non_blocking=True)
        bad = ~torch.isfinite(values)
        place = bad.int().argmax().view(1)
        number = torch.full_like(values[:1], len(self.notes))
        entry = torch.cat([number, place.to(widest), values.index_select(0, place)])
        self.first = torch.where(bad.any() & (self.first[0] < 0), entry, self.first)
        self.notes.append((names, step, batch_idx, batches))

    def poll(self) -> NonFiniteValue | None:
        """Return the first non-finite value since the last poll, or None, and reset the detector."""
        if self.first is None:
            return None
        number, place, value = self.first.tolist()
        notes, self.notes, self.first = self.notes, [], None
        if number < 0:
            return None
        names, step, batch_idx, batches = notes[int(number)]
        return NonFiniteValue(names[int(place)], value, step, batch_idx, batches)


def poll_is_free(device: torch.device) -> bool:
    """Return whether polling on this device does not stall it."""
    return device.type == "cpu"


class NonFiniteReport(RunFileWriter, Callback):
    """Callback that lists the images of the step whose loss or gradient was not finite: epoch, batch, path and class."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if not isinstance(exception, NumericError) or not exception.batches:
            return
        split = trainer.datamodule.splits.train  # type: ignore[attr-defined]
        rows: list[tuple[Any, ...]] = [("epoch", "batch", "path", "class")]
        sampler: Any = trainer.train_dataloader.batch_sampler  # type: ignore[union-attr]
        for number, batch in zip(exception.batches, sampler.batches(exception.batches), strict=True):
            for _, index, _ in batch:
                label = trainer.datamodule.splits.classes[split.labels[index]]  # type: ignore[attr-defined]
                rows.append((trainer.current_epoch + 1, number, split.paths[index], label))
        path = Path(trainer.default_root_dir) / NOT_FINITE.format(rank=trainer.global_rank)
        with self.writing(path, ending=True):
            write_csv(path, rows)


def check_finite(checkpoint: dict[str, Any], path: Any) -> None:
    """Raise NumericError if a weight is not finite, before the checkpoint replaces a good one."""
    for state in ("state_dict", "current_model_state"):  # with averaging, the latter has the raw weights
        for name, value in checkpoint.get(state, {}).items():
            if value.is_floating_point() and not torch.isfinite(value.norm()):
                raise NumericError(
                    f"weights must be finite to be saved; {name} is not finite at step {checkpoint['global_step']}, so "
                    f"{path} was not overwritten. Try a smaller optimizer.lr"
                )
