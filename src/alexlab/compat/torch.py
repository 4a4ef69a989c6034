"""Private names of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader
    from torch.utils.tensorboard import SummaryWriter


def foreach_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of each tensor as one tensor (N,), computed by a few fused kernels.

    Works around: `torch.nn.utils.get_total_norm` is fused too, but returns a single norm of all tensors. Checked with torch 2.11
    and 2.15.
    """
    import torch

    return torch.stack(torch._foreach_norm(list(tensors)))


def shut_down_workers(loader: DataLoader[Any]) -> None:
    """Terminate the persistent worker processes of a data loader, if it has any.

    Works around: a DataLoader terminates them only when it is garbage collected, at which time their queues may already be
    closed. Checked with torch 2.11 and 2.15.
    """
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    if isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
        loader._iterator._shutdown_workers()
        loader._iterator = None


def pickled_module(node: Any) -> tuple[dict[str, Any], Mapping[str, Any]] | None:
    """Return the entries of a pickled module's own state dict, and its submodules by name; None if it is no module.

    Works around: `nn.Module.state_dict` needs the module's class, and a class that a file names is not imported. Checked with
    torch 2.11 and 2.15.

    Args:
        node: placeholder object with the attributes that were pickled.
    """
    attributes = getattr(node, "__dict__", {})
    children = attributes.get("_modules")
    if not isinstance(children, Mapping):
        return None
    transient = attributes.get("_non_persistent_buffers_set", ())
    tensors = {}
    for kind in ("_parameters", "_buffers"):
        for name, value in attributes.get(kind, {}).items():
            if name not in transient:
                tensors[name] = value
    return tensors, children


def summary_writer(log_dir: str, open_file: Callable[[str], Any], *, purge_step: int | None = None) -> SummaryWriter:
    """Return a SummaryWriter that writes to a given file object.

    Works around: SummaryWriter always creates an EventFileWriter, whose thread dies at the first event that a full disk
    rejects. Checked with torch 2.11 and 2.15.

    Args:
        log_dir: folder of the event file.
        open_file: called with `log_dir`; returns an object with the methods of tensorboard's EventFileWriter.
        purge_step: TensorBoard hides events of earlier files from this step on.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from torch.utils.tensorboard import FileWriter, SummaryWriter

    class Writer(SummaryWriter):
        file_writer: Any
        all_writers: Any

        def _get_file_writer(self) -> Any:
            if self.file_writer is None:
                self.file_writer = FileWriter.__new__(FileWriter)  # its constructor starts the thread
                self.file_writer.event_writer = open_file(log_dir)
                self.all_writers = {log_dir: self.file_writer}
                if self.purge_step is not None:
                    self.file_writer.add_event(Event(step=self.purge_step, file_version="brain.Event:2"))
                    start = SessionLog(status=SessionLog.START)
                    self.file_writer.add_event(Event(step=self.purge_step, session_log=start))
                    self.purge_step = None
            return self.file_writer

    return Writer(log_dir, purge_step=purge_step)
