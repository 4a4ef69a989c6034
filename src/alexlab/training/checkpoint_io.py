"""Reading and writing of checkpoint files, and the position in training that they store."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from alexlab import compat
from alexlab.runs.atomic import RunFileWriter, write_atomic
from alexlab.runs.layout import CHECKPOINT_KEY
from alexlab.runs.safe_load import load_file
from alexlab.training.nonfinite import check_finite


class AtomicCheckpointIO(RunFileWriter, TorchCheckpointIO):
    """Writes a checkpoint beside its place, then puts it there: a reader sees the old one or the new one.

    Lightning's own writes to the temporary folder first, which destroys the old checkpoint when the process is killed and
    that folder is on another file system, and it says nothing when the target cannot be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Replaces the file; it is written as it is serialised, so that it is in memory only once.

        Raises:
            NumericError: when a weight is not finite; what was there is kept.
            DiskError: when the file cannot be written.
        """
        check_finite(checkpoint, path)
        with self.writing(Path(path)):
            write_atomic(Path(path), partial(torch.save, checkpoint), size=_size(checkpoint))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads plain data only, whatever is asked."""
        found: dict[str, Any] = load_file(Path(path))
        return found


def remove_partial_checkpoints(folder: Path) -> None:
    """Removes what a process that was killed while it wrote has left; for the one writer of a run folder."""
    for path in folder.glob(".*.ckpt.*"):
        path.unlink(missing_ok=True)


def position(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """How many epochs are whole in a checkpoint, and how many batches of the next one each rank has had."""
    epochs, batches = (progress["current"] for progress in compat.loop_progress(checkpoint))
    inside = epochs["processed"] < epochs["ready"]
    return epochs["processed"], batches["ready"] if inside else 0


def rescale_progress(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Counts the batches of a checkpoint in those of a run that adds up another number of them in a step: on fewer nodes it
    adds up more. Checkpoints stand between two steps.
    """
    inside = checkpoint[CHECKPOINT_KEY]["mid_epoch"]
    before, inside["accumulate_grad_batches"] = inside.get("accumulate_grad_batches", accumulate), accumulate
    if before == accumulate:
        return
    _, progress = compat.loop_progress(checkpoint)
    for counts in (progress["total"], progress["current"]):
        more = counts["ready"] * accumulate // before - counts["ready"]  # a save may stand inside of its last batch
        counts |= {name: count + more for name, count in counts.items()}


def _size(checkpoint: Any) -> int:
    """Bytes of its tensors."""
    if isinstance(checkpoint, torch.Tensor):
        return checkpoint.nbytes
    items = checkpoint.values() if isinstance(checkpoint, dict) else checkpoint
    return sum(map(_size, items)) if isinstance(checkpoint, dict | list | tuple) else 0
