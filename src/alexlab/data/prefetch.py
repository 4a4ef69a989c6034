"""Prefetching to the device: the next batch is copied, and optionally cropped, while a step runs."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

Batch = tuple[Tensor, Tensor]
PostProcess = Callable[[Batch], Batch]
T = TypeVar("T")


class Pending(Protocol):
    """Handle of work that was started; calling it returns the result."""

    def __call__(self) -> Any: ...


def prefetch(items: Iterable[T], start: Callable[[T], Pending]) -> Iterator[Any]:
    """Yield the result for each item, having started the next one first.

    Args:
        items: inputs, in order.
        start: function that starts the work for an item and returns its handle.
    """
    pending: Pending | None = None
    for item in items:
        started = start(item)
        if pending is not None:
            yield pending()
        pending = started
    if pending is not None:
        yield pending()


class DevicePrefetcher:
    """Copy of batches to a device, on a separate stream if the device has streams.

    Args:
        device: target device.
        post_process: function applied to each batch on the device, such as cropping its images; None for the identity.
    """

    def __init__(self, device: torch.device, post_process: PostProcess | None = None) -> None:
        self.device, self.post_process = device, post_process
        self.stream: torch.cuda.Stream | None = (
            None  # created with the first batch: CUDA must start after workers are forked
        )

    def __call__(self, batch: Batch) -> Pending:
        """Start to copy a batch."""
        if self.device.type != "cuda":
            copied = self._copied(batch)
            return lambda: copied
        if self.stream is None:
            self.stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self.stream):
            copied = self._copied(batch)
            ready = self.stream.record_event()

        def wait() -> Batch:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready)
            for tensor in copied:
                tensor.record_stream(current)  # so that its memory is not reused while the step needs it
            return copied

        return wait

    def _copied(self, batch: Batch) -> Batch:
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        return (images, labels) if self.post_process is None else self.post_process((images, labels))


class PrefetchLoader(DataLoader[Any]):
    """DataLoader whose batches are on a device, one ahead of the step.

    Args:
        args, kwargs: arguments of DataLoader.
        prefetcher: function that starts to copy a batch to the device; None leaves batches on the CPU.
    """

    def __init__(self, *args: Any, prefetcher: Callable[[Batch], Pending] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefetcher = prefetcher

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return batches if self.prefetcher is None else prefetch(batches, self.prefetcher)
