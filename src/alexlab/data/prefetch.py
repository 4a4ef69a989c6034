"""Batches that are on the device when they are asked for: the next one is copied, and cut, while a step runs."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

Batch = tuple[Tensor, Tensor]
PostProcess = Callable[[Batch], Batch]
T = TypeVar("T")


class Ready(Protocol):
    """Something that was begun; called when it is needed."""

    def __call__(self) -> Any: ...


def prefetch(items: Iterable[T], begin: Callable[[T], Ready]) -> Iterator[Any]:
    """Begins with each item while the one before is in use.

    Args:
        items: anything.
        begin: begins with an item and gives what hands it over.
    """
    waiting: Ready | None = None
    for item in items:
        begun = begin(item)
        if waiting is not None:
            yield waiting()
        waiting = begun
    if waiting is not None:
        yield waiting()


class DevicePrefetcher:
    """Copies batches to a device, on a stream of its own where the device has streams, and finishes them there.

    Args:
        device: where the batches go.
        finish: what is done with a batch on the device, such as to cut its images; None for nothing.
    """

    def __init__(self, device: torch.device, finish: PostProcess | None = None) -> None:
        self.device, self.finish = device, finish
        self.stream: torch.cuda.Stream | None = (
            None  # made with the first batch: CUDA starts after the processes are forked
        )

    def __call__(self, batch: Batch) -> Ready:
        if self.device.type != "cuda":
            done = self._moved(batch)
            return lambda: done
        if self.stream is None:
            self.stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self.stream):
            done = self._moved(batch)
            ready = self.stream.record_event()

        def hand_over() -> Batch:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready)
            for tensor in done:
                tensor.record_stream(current)  # its memory is not given to others while the step uses it
            return done

        return hand_over

    def _moved(self, batch: Batch) -> Batch:
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        return (images, labels) if self.finish is None else self.finish((images, labels))


class PrefetchLoader(DataLoader[Any]):
    """A DataLoader whose batches are on a device, one ahead of the step.

    Args:
        args, keywords: of DataLoader.
        to_device: what brings them there; None leaves them where they are.
    """

    def __init__(self, *args: Any, to_device: Callable[[Batch], Ready] | None = None, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.to_device = to_device

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return batches if self.to_device is None else prefetch(batches, self.to_device)
