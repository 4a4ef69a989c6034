"""Batches that are brought to the device one ahead of the step."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from alexlab.data.prefetch import DevicePrefetcher, PrefetchLoader, prefetch


def test_each_item_is_begun_before_the_one_before_it_is_done_with() -> None:
    said: list[str] = []

    def items() -> Iterator[int]:
        for number in range(3):
            said.append(f"read {number}")
            yield number

    def begin(item: int) -> Callable[[], int]:
        said.append(f"begin {item}")
        return lambda: said.append(f"hand over {item}") or item  # type: ignore[func-returns-value]

    for found in prefetch(items(), begin):
        said.append(f"step {found}")
    assert said == [
        *("read 0", "begin 0", "read 1", "begin 1", "hand over 0", "step 0"),
        *("read 2", "begin 2", "hand over 1", "step 1", "hand over 2", "step 2"),
    ]
    assert list(prefetch([], begin)) == []


def test_a_loader_gives_every_batch_finished_once_in_order_and_again() -> None:
    dataset = [(torch.full((2,), float(number)), number) for number in range(7)]

    def doubled(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * batch[0], batch[1]

    loader = PrefetchLoader(dataset, batch_size=3, to_device=DevicePrefetcher(torch.device("cpu"), doubled))
    for _ in range(2):
        batches: list[Any] = list(loader)
        assert [labels.tolist() for _, labels in batches] == [[0, 1, 2], [3, 4, 5], [6]]
        for images, labels in batches:
            assert torch.equal(images[:, 0], 2.0 * labels)
    assert len(loader) == 3
    assert [len(labels) for _, labels in PrefetchLoader(dataset, batch_size=4)] == [4, 3]
