from collections.abc import Callable, Iterator
from typing import Any

import torch

from alexlab.data.prefetch import DevicePrefetcher, PrefetchLoader, prefetch


def test_each_item_is_started_before_the_previous_one_is_used() -> None:
    events: list[str] = []

    def items() -> Iterator[int]:
        for number in range(3):
            events.append(f"read {number}")
            yield number

    def start(item: int) -> Callable[[], int]:
        events.append(f"start {item}")
        return lambda: events.append(f"finish {item}") or item  # type: ignore[func-returns-value]

    for item in prefetch(items(), start):
        events.append(f"step {item}")
    assert events == [
        *("read 0", "start 0", "read 1", "start 1", "finish 0", "step 0"),
        *("read 2", "start 2", "finish 1", "step 1", "finish 2", "step 2"),
    ]
    assert list(prefetch([], start)) == []


def test_a_loader_yields_post_processed_batches_in_order_every_epoch() -> None:
    dataset = [(torch.full((2,), float(number)), number) for number in range(7)]

    def doubled(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * batch[0], batch[1]

    loader = PrefetchLoader(dataset, batch_size=3, prefetcher=DevicePrefetcher(torch.device("cpu"), doubled))
    for _ in range(2):
        batches: list[Any] = list(loader)
        assert [labels.tolist() for _, labels in batches] == [[0, 1, 2], [3, 4, 5], [6]]
        for images, labels in batches:
            assert torch.equal(images[:, 0], 2.0 * labels)
    assert len(loader) == 3
    assert [len(labels) for _, labels in PrefetchLoader(dataset, batch_size=4)] == [4, 3]
