from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from alexlab.data.cache.on_device import CropSampler
from alexlab.data.dataset import PaddedDataset, SeededDataset
from alexlab.data.limits import num_limited_batches
from alexlab.data.samplers import (
    EvalBatchSampler,
    TrainBatchSampler,
    derived_seed,
    stratified_sample,
)
from alexlab.data.transforms import RandomCropView, shared_crops


class Noisy:
    """Dataset of random items, like augmented images."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[float, int]:
        return torch.rand(1).item(), index


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("shards", [None, np.arange(40) // 6])
def test_global_batches_do_not_depend_on_the_number_of_ranks(
    num_ranks: int, accumulate: int, shards: np.ndarray | None
) -> None:
    def steps(num_ranks: int, accumulate: int) -> list[set[tuple[int, int]]]:
        keys = {
            "batch_size": 12,
            "num_ranks": num_ranks,
            "accumulation_steps": accumulate,
            "shard_ids": shards,
            "shuffle_shards": 2,
        }
        ranks = [list(TrainBatchSampler([0] * 40, rank=rank, seed=5, **keys)) for rank in range(num_ranks)]
        assert {len(batches) for batches in ranks} == {3 * accumulate}
        return [
            set(
                chain.from_iterable(
                    chain.from_iterable(rank[step * accumulate : (step + 1) * accumulate] for rank in ranks)
                )
            )
            for step in range(3)
        ]

    assert steps(num_ranks, accumulate) == steps(1, 1)
    assert all(len(step) == 12 for step in steps(num_ranks, accumulate))


def test_each_epoch_has_another_order_of_all_images() -> None:
    batches = TrainBatchSampler([0] * 40, batch_size=8, seed=5)
    first = list(chain.from_iterable(batches))
    batches.set_epoch(1)
    second = list(chain.from_iterable(batches))
    assert [index for _, index, _ in first] != [index for _, index, _ in second]
    assert sorted(index for _, index, _ in second) == list(range(40))
    assert {epoch for epoch, _, _ in second} == {1}
    assert [position for _, _, position in second] == list(range(40))
    assert first == list(chain.from_iterable(TrainBatchSampler([0] * 40, batch_size=8, seed=5)))


def sharded(**options: Any) -> TrainBatchSampler:
    """20,000 images, 100 in a shard, in batches of 100."""
    keys = {"shard_ids": np.arange(20_000) // 100, "shuffle_shards": 8, "batch_size": 100, "seed": 5} | options
    return TrainBatchSampler([0] * 20_000, **keys)


def test_sharded_images_are_read_shard_by_shard_and_shuffled() -> None:
    batches = sharded()
    first = np.array([index for _, index, _ in chain.from_iterable(batches)])
    assert sorted(first) == list(range(20_000)), "every image once"
    order = batches.shard_order(0)
    assert sorted(order) == list(range(200)) and list(order) == list(dict.fromkeys((first // 100).tolist()))
    steps = order.argsort()[first // 100].reshape(-1, 100)
    # A batch has images of the shards within the window only, and one more shard begins with each hundred images. Only batches
    # at the start and at the end of an epoch have images of fewer shards.
    newest = np.maximum.accumulate(steps.max(1))
    assert (newest[:, None] - steps <= 9).all()
    assert (abs(newest - np.arange(200) - 4) <= 2)[8:-8].all()
    spread = np.array([len(np.unique(step)) for step in steps[8:-8]])
    assert spread.min() >= 8, "a batch has images of all shards in the window"
    share = np.array([np.bincount(step, minlength=200).max() for step in steps[8:-8]])
    assert share.mean() < 25, "no shard dominates a batch; 12.5 images are expected of each"
    batches.set_epoch(1)
    second = [index for _, index, _ in chain.from_iterable(batches)]
    assert list(first) != second and sorted(second) == list(range(20_000))
    assert [index for _, index, _ in chain.from_iterable(sharded())] == list(first)
    overfit = sharded(overfit=True)
    overfit.set_epoch(1)
    assert [index for _, index, _ in chain.from_iterable(overfit)] == list(first)
    resumed = sharded(resume_at=(0, 150))
    assert list(resumed) == list(sharded())[150:]


def test_most_shards_are_read_by_one_rank() -> None:
    ranks = [list(sharded(num_ranks=4, rank=rank)) for rank in range(4)]
    fetched = [{index // 100 for _, index, _ in chain.from_iterable(batches)} for batches in ranks]
    for rank, batches in enumerate(ranks):
        expected = sharded(num_ranks=4, rank=rank).shard_order(0).tolist()
        assert expected == list(dict.fromkeys(index // 100 for _, index, _ in chain.from_iterable(batches)))
    assert set.union(*fetched) == set(range(200))
    assert sum(map(len, fetched)) < 2.2 * 200, "4 x 200 if every rank read every shard"


def test_on_epoch_is_called_once_per_epoch() -> None:
    epochs: list[int] = []
    items = SeededDataset(Noisy(), seed=0, on_epoch=epochs.append)
    for keys in ([(0, 1), (0, 2)], [(0, 3)], [(1, 0)], [(3, 1)]):
        items.__getitems__(keys)
    assert epochs == [0, 1, 3]


@pytest.mark.parametrize(("num_ranks", "accumulate"), [(1, 1), (2, 1), (2, 2)])
def test_consecutive_images_share_a_crop_on_any_number_of_ranks(num_ranks: int, accumulate: int) -> None:
    """As with `data.cache=device`, whose sampler of crops draws the same positions."""
    corners = torch.arange(32 * 32).view(1, 32, 32)
    crop = RandomCropView(28, square=True, images_per_crop=4)
    recipe = v2.Compose([crop, v2.RandomHorizontalFlip(0.0)])
    packed = CropSampler(recipe, 32)

    class Views:
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> tuple[Any, int]:
            top, left, *_ = packed.draw()
            assert recipe(corners)[0, 0, 0] == 32 * top + left
            return (top, left), index

    items = SeededDataset(Views(), seed=3, shared=shared_crops(recipe))
    found: dict[int, tuple[int, int]] = {}
    for epoch in range(2):
        for rank in range(num_ranks):
            options = {"num_ranks": num_ranks, "rank": rank, "accumulation_steps": accumulate}
            sampler = TrainBatchSampler([0] * 16, batch_size=8, seed=5, **options)
            sampler.set_epoch(epoch)
            for batch in sampler:
                found |= {
                    16 * epoch + key[2]: item[0] for key, item in zip(batch, items.__getitems__(batch), strict=True)
                }
    groups = [{found[4 * group + number] for number in range(4)} for group in range(8)]
    assert [len(group) for group in groups] == [1] * 8 and len(set.union(*groups)) > 4
    one = SeededDataset(Views(), seed=3, shared=shared_crops(recipe))
    whole = TrainBatchSampler([0] * 16, batch_size=8, seed=5)
    assert [item[0] for batch in whole for item in one.__getitems__(batch)] == [found[number] for number in range(16)]


def test_set_epoch_is_where_lightning_looks_for_it() -> None:
    batches = TrainBatchSampler([0] * 4, batch_size=2)
    assert batches.sampler is batches


def test_balanced_sampling_draws_every_class_equally_often() -> None:
    labels = [0] * 900 + [1] * 100
    drawn = Counter(
        labels[index] for _, index, _ in chain.from_iterable(TrainBatchSampler(labels, batch_size=1000, balanced=True))
    )
    assert drawn[1] / 1000 == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("length", range(1, 18))
def test_evaluation_reads_every_image_once_and_all_ranks_take_the_same_steps(length: int, num_ranks: int) -> None:
    ranks = [list(EvalBatchSampler(length, batch_size=4, num_ranks=num_ranks, rank=rank)) for rank in range(num_ranks)]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == len(EvalBatchSampler(length, batch_size=4, num_ranks=num_ranks))
    read = list(chain.from_iterable(chain.from_iterable(ranks)))
    assert sorted(index for index in read if index >= 0) == list(range(length))


def test_a_stratified_sample_has_the_class_fractions_of_the_split() -> None:
    labels = np.repeat([0, 1, 2, 4], [500, 300, 150, 50])
    for count in (20, 100, 333, 1000):
        sample = stratified_sample(labels, count, seed=3)
        assert len(set(sample.tolist())) == count and (np.diff(sample) > 0).all()
        found = np.bincount(labels[sample], minlength=5) / count
        assert np.abs(found - [0.5, 0.3, 0.15, 0, 0.05]).max() <= 1.5 / count
    first, other = stratified_sample(labels, 100, seed=3), stratified_sample(labels, 100, seed=4)
    assert np.array_equal(first, stratified_sample(labels.tolist(), 100, seed=3))
    assert not np.array_equal(first, other)
    many = np.arange(1000) // 2  # more classes than the sample has images
    assert len(set(many[stratified_sample(many, 100, seed=0)].tolist())) == 100


@pytest.mark.parametrize("limit", [1, 3, 99, 0.5, 1.0])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_a_limited_evaluation_reads_the_same_sample_on_any_number_of_ranks(num_ranks: int, limit: float) -> None:
    """The batches that Lightning takes of each rank contain exactly the sample."""
    labels = np.repeat([0, 1], 25)
    count = min(50, 8 * num_limited_batches(7, limit))
    sample = stratified_sample(labels, count, seed=0)
    keys = {"batch_size": 8, "num_ranks": num_ranks, "sample": sample}
    ranks = [EvalBatchSampler(50, rank=rank, **keys) for rank in range(num_ranks)]
    assert {len(batches) for batches in ranks} == {7}
    read = [index for batches in ranks for batch in list(batches)[: num_limited_batches(7, limit)] for index in batch]
    assert sorted(index for index in read if index >= 0) == sample.tolist()
    assert abs(2 * labels[sample].sum() - count) <= 1


def test_limits_are_applied_as_lightning_applies_them() -> None:
    from lightning.pytorch.trainer.connectors.data_connector import RunningStage, _parse_num_batches

    for length in range(1, 40):
        for limit in (0, 1, 7, 100, 0.0, 0.29, 0.5, 0.999, 1.0):
            if isinstance(limit, float) and limit > 0 and int(length * limit) == 0:
                continue  # an error in Lightning, and in alexlab before that
            assert num_limited_batches(length, limit) == _parse_num_batches(RunningStage.VALIDATING, length, limit)


def test_padding_has_the_label_of_padding() -> None:
    items = PaddedDataset(Noisy())
    assert (items[3][1], items[-1][1], len(items)) == (3, -1, 10)


def test_random_draws_depend_on_seed_epoch_and_index_only() -> None:
    items = SeededDataset(Noisy(), seed=1)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first = items[(0, 3)]
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert items[(0, 3)] == first
    draws = {items[(epoch, index)][0] for epoch in range(3) for index in range(3)}
    assert len(draws | {SeededDataset(Noisy(), seed=2)[(0, 0)][0]}) == 10


def test_derived_seeds_are_stable_and_distinct() -> None:
    assert derived_seed(1, 2) == 5934340693050249675
    assert len({derived_seed(a, b) for a in range(30) for b in range(30)}) == 900
    assert all(0 <= derived_seed(a) < 2**63 for a in range(100))
