"""Atomic reads and writes of checkpoint files, and the training position stored in them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, WeightAveraging

from alexlab import compat
from alexlab.records.atomic import write_atomic
from alexlab.records.disk_errors import RunFileWriter
from alexlab.records.layout import CHECKPOINT_KEY
from alexlab.records.safe_load import check_plain, load_file
from alexlab.training.nonfinite import check_finite


class AtomicCheckpointIO(RunFileWriter, TorchCheckpointIO):
    """CheckpointIO that writes to a temporary name and renames it: a reader sees the old checkpoint or the new one.

    Lightning's own (2.6) writes to the temporary folder first. If that is on another file system, killing the process
    destroys the old checkpoint, and a target that cannot be written raises no error.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Replace the file, serializing straight to disk so that the checkpoint is in memory only once.

        Raises:
            ConfigError: if the state of a part cannot be stored.
            NumericError: if a weight is not finite; the existing file is kept.
            DiskError: if the file cannot be written.
        """
        check_plain(checkpoint)
        check_finite(checkpoint, path)
        with self.writing(Path(path)):
            write_atomic(Path(path), partial(torch.save, checkpoint), size=_size(checkpoint))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load tensors and plain data, as with `weights_only=True`, regardless of the arguments."""
        found: dict[str, Any] = load_file(Path(path))
        return found


def remove_partial_checkpoints(folder: Path) -> None:
    """Remove temporary files of writers that were killed. Only for the process that owns the run folder."""
    for path in folder.glob(".*.ckpt.*"):
        path.unlink(missing_ok=True)


def position(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Return the number of finished epochs and the number of batches of the next epoch that each rank has trained on."""
    epochs, batches = (progress["current"] for progress in compat.loop_progress(checkpoint))
    inside = epochs["processed"] < epochs["ready"]
    return epochs["processed"], batches["ready"] if inside else 0


def reopen_epoch(checkpoint: dict[str, Any]) -> None:
    """Undo the end of an epoch that `max_time`, `max_steps` or early stopping cut short, so that a resumed run completes it."""
    epochs, batches = compat.loop_progress(checkpoint)
    is_open = epochs["current"]["processed"] < epochs["current"]["ready"]
    if is_open or batches["is_last_batch"] or not batches["current"]["ready"]:
        return
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["ready"] - 1
    compat.reopen_batch(checkpoint)


def keep_raw_weights(checkpoint: dict[str, Any], callbacks: Sequence[Callback]) -> None:
    """Make a run that no longer averages its weights continue from the raw ones, to which its optimizer state belongs."""
    if "current_model_state" in checkpoint and not any(isinstance(each, WeightAveraging) for each in callbacks):
        checkpoint["state_dict"] = checkpoint["current_model_state"]


def rescale_progress(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Convert the batch counters of a checkpoint to another number of accumulation steps.

    A run resumed on fewer nodes accumulates more batches per optimizer step. Checkpoints are only saved between two steps.
    """
    inside = checkpoint[CHECKPOINT_KEY]["mid_epoch"]
    before, inside["accumulate_grad_batches"] = inside["accumulate_grad_batches"], accumulate
    if before == accumulate:
        return
    _, progress = compat.loop_progress(checkpoint)
    for counts in (progress["total"], progress["current"]):
        # A difference, not a factor: the last batch may be counted as ready but not yet as completed.
        more = counts["ready"] * accumulate // before - counts["ready"]
        counts |= {name: count + more for name, count in counts.items()}


def _size(checkpoint: Any) -> int:
    """Return the size of all tensors in nested dicts and lists, in bytes."""
    if isinstance(checkpoint, torch.Tensor):
        return checkpoint.nbytes
    items = checkpoint.values() if isinstance(checkpoint, dict) else checkpoint
    return sum(map(_size, items)) if isinstance(checkpoint, dict | list | tuple) else 0
