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
from alexlab.runs.atomic import RunFileWriter
from alexlab.runs.layout import NOT_FINITE


@dataclass(frozen=True)
class NonFiniteValue:
    """A value that is not finite.

    Args:
        name: of the value.
        value: itself.
        step: optimizer step.
        batch_idx: batch of this rank in its epoch.
        batches: how many batches up to that one may be the cause.
    """

    name: str
    value: float
    step: int
    batch_idx: int
    batches: int


class NonFiniteDetector:
    """Notes the first value that is not finite where the value is, and tells it when it is asked.

    To ask makes the host wait until the device has done everything that it was given; on the CPU it costs nothing.
    """

    def __init__(self) -> None:
        self.notes: list[tuple[Sequence[str], int, int, int]] = []
        self.first: Tensor | None = None  # number of the note, place in it, value; -1 as long as there is none

    def record(self, names: Sequence[str], values: Tensor, *, step: int, batch_idx: int, batches: int = 1) -> None:
        """Looks at values (P,) on their device.

        Args:
            names: of the values, P.
            values: on any device.
            step, batch_idx, batches: see `NonFiniteValue`.
        """
        values = values.detach().double()
        if self.first is None:
            self.first = torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64).to(values.device, non_blocking=True)
        bad = ~torch.isfinite(values)
        place = bad.int().argmax().view(1)
        number = torch.full_like(values[:1], len(self.notes))
        entry = torch.cat([number, place.double(), values.index_select(0, place)])
        self.first = torch.where(bad.any() & (self.first[0] < 0), entry, self.first)
        self.notes.append((names, step, batch_idx, batches))

    def poll(self) -> NonFiniteValue | None:
        """The first value since the last time that was not finite; forgets everything."""
        if self.first is None:
            return None
        number, place, value = self.first.tolist()
        notes, self.notes, self.first = self.notes, [], None
        if number < 0:
            return None
        names, step, batch_idx, batches = notes[int(number)]
        return NonFiniteValue(names[int(place)], value, step, batch_idx, batches)


def poll_is_free(device: torch.device) -> bool:
    """Whether to ask costs nothing there."""
    return device.type == "cpu"


class NonFiniteReport(RunFileWriter, Callback):
    """Lists the images of the step whose loss or gradient was not finite: epoch, batch, path and label."""

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if not isinstance(exception, NumericError) or not exception.batches:
            return
        split = trainer.datamodule.splits.train  # type: ignore[attr-defined]
        rows: list[tuple[Any, ...]] = [("epoch", "batch", "path", "class")]
        sampler: Any = trainer.train_dataloader.batch_sampler  # type: ignore[union-attr]
        for number, batch in zip(exception.batches, sampler.batches(exception.batches), strict=True):
            for _, index in batch:
                label = trainer.datamodule.splits.classes[split.labels[index]]  # type: ignore[attr-defined]
                rows.append((trainer.current_epoch, number, split.paths[index], label))
        path = Path(trainer.default_root_dir) / NOT_FINITE.format(rank=trainer.global_rank)
        with self.writing(path, ending=True):
            write_csv(path, rows)


def check_finite(checkpoint: dict[str, Any], path: Any) -> None:
    """Raises NumericError when a weight is not finite: such a checkpoint would take the place of a good one."""
    for state in ("state_dict", "current_model_state"):  # the latter are those that are averaged
        for name, value in checkpoint.get(state, {}).items():
            if value.is_floating_point() and not torch.isfinite(value.norm()):
                raise NumericError(
                    f"weights must be finite to be saved; {name} is not at step {checkpoint['global_step']}, and {path} "
                    "was not written: what was there is kept. Try a smaller optimizer.lr"
                )
