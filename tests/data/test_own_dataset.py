"""Datasets and data modules of the user: labels, random draws, and what is refused."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from alexlab.data.dataset import ImageDataset, SeededDataset, ViewReader
from alexlab.data.image_file import DEFAULT_DECODING, Decoding
from alexlab.data.own_dataset import dataset_splits
from alexlab.data.splits import Splits
from alexlab.errors import DataError

LABELS = torch.arange(30) % 3
IMAGES = torch.arange(30, dtype=torch.uint8).view(-1, 1, 1, 1).expand(30, 3, 8, 8)


class Module(lightning.LightningDataModule):
    classes = ("a", "b", "c")

    def __init__(self, make: Callable[[Any], Any] = DataLoader) -> None:
        super().__init__()
        self.make, self.calls = make, []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        assert self.calls[0] == "prepare"
        images, labels = TensorDataset(IMAGES[:20], LABELS[:20]), TensorDataset(IMAGES[20:], LABELS[20:])
        self.parts = random_split(ConcatDataset([images, labels]), [16, 14])

    def train_dataloader(self) -> Any:
        return self.make(self.parts[0])

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts[1])


def splits(target: Any, **arguments: Any) -> Splits:
    return dataset_splits(partial(target, **arguments), val_fraction=0.2, split_seed=1)


def numbers(found: Splits) -> list[list[int]]:
    """Return the position in IMAGES of each image of train and val."""
    return [
        [int(split.load(row, DEFAULT_DECODING)[0, 0, 0]) for row in range(len(split))]
        for split in (found.train, found.val)
    ]


def test_a_data_module_is_split_in_the_same_way_each_time() -> None:
    torch.manual_seed(1)
    first = splits(Module, make=partial(DataLoader, shuffle=True))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = splits(Module)
    assert torch.equal(torch.get_rng_state(), state)
    assert numbers(first) == numbers(second)
    train, val = numbers(first)
    assert sorted(train + val) == list(range(30))
    assert first.train.labels.tolist() == [number % 3 for number in train]
    assert first.val.classes == ["a", "b", "c"] and first.test is None
    assert "batches (data.batch_size)" in first.notes[0]


class Drawn(Dataset):
    """Images of random brightness, from three generators."""

    classes, targets = ("a", "b"), [0, 1] * 4

    def __init__(self, split: str) -> None:
        self.split = split

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        values = [np.random.randint(256), random.randrange(256), int(torch.randint(256, ()))]
        return np.full((4, 4, 3), values, np.uint8), self.targets[index]


def test_random_draws_of_an_item_depend_on_seed_epoch_and_index() -> None:
    train = splits(Drawn).train
    dataset = ImageDataset(train, ViewReader(None, Decoding()))

    def draw(seed: int, epoch: int, index: int) -> list[int]:
        image, _ = SeededDataset(dataset, seed=seed)[epoch, index]
        return image[:, 0, 0].tolist()

    first = draw(1, 2, 3)
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert all(one != two for one, two in zip(first, draw(*other), strict=True))
    assert draw(1, 2, 3) == first


class Relabelled(Dataset):
    """Images whose items have the labels of `change`, unlike `targets`."""

    classes, targets = ("a", "b"), [0, 1] * 5

    def __init__(self, split: str, change: Callable[[int, int], Any]) -> None:
        self.change = change

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return np.zeros((4, 4, 3), np.uint8), self.change(index, self.targets[index])


@pytest.mark.parametrize("change", [int, float, torch.tensor, np.int32, np.array, lambda label: torch.tensor([label])])
def test_the_label_of_an_item_is_one_number(change: Callable[[int], Any]) -> None:
    train = splits(Relabelled, change=lambda index, label: change(label)).train
    assert [ImageDataset(train, ViewReader(None, Decoding()))[row][1] for row in range(10)] == [0, 1] * 5


@pytest.mark.parametrize(
    ("label", "given"),
    [(1, "1"), (0.7, r"0\.7"), ("a", "'a'"), (None, "None"), (torch.eye(2)[0], r"tensor\(\[1\., 0\.\]\)")],
)
def test_an_item_whose_label_is_not_its_target_is_refused_before_the_run(label: Any, given: str) -> None:
    message = (
        rf"label of item 0 of data\.dataset must be its target, 0; got {given}; `targets` must hold .* target_transform"
    )
    with pytest.raises(DataError, match=message):
        splits(Relabelled, change=lambda index, target: label)


def test_an_item_whose_label_is_not_its_target_is_refused_when_it_is_loaded() -> None:
    train = splits(Relabelled, change=lambda index, label: label if index < 7 else 1 - label).train
    assert ImageDataset(train, ViewReader(None, Decoding()))[6][1] == 0
    with pytest.raises(DataError, match=r"item 7 of data\.dataset must be its target, 1; got 0"):
        ImageDataset(train, ViewReader(None, Decoding()))[7]


def part(*classes: str) -> Dataset:
    """Return a dataset whose items have the labels 0, 1, ..."""
    found: Any = TensorDataset(IMAGES[: len(classes)], torch.arange(len(classes)))
    found.classes = classes
    return found


class Parts(lightning.LightningDataModule):
    def __init__(self, train: Dataset, val: Dataset, classes: Any = None) -> None:
        super().__init__()
        self.train, self.val, self.classes = train, val, classes

    def train_dataloader(self) -> Any:
        return DataLoader(self.train)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val)


PETS = ("cat", "dog")


def test_parts_with_the_same_classes_share_labels() -> None:
    without = TensorDataset(IMAGES[:2], LABELS[:2])
    both = Subset(ConcatDataset([without, part(*PETS), part(*PETS)]), range(6))
    assert splits(Parts, train=both, val=part(*PETS)).train.classes == ["cat", "dog"]
    assert splits(Parts, train=both, val=without, classes=("a", "b")).val.classes == ["a", "b"]
    with pytest.raises(DataError, match="split val: 'TensorDataset' object has no attribute 'classes'"):
        splits(Parts, train=both, val=without)


@pytest.mark.parametrize("classes", [None, ("a", "b", "c")])
def test_parts_with_different_classes_are_refused(classes: Any) -> None:
    mixed = ConcatDataset([Subset(part(*PETS), [0, 1]), part("dog", "fox")])
    message = "all parts of a ConcatDataset must have the same `classes`, .*; label 0 is cat and dog; give all of them one list"
    with pytest.raises(DataError, match=message):
        splits(Parts, train=mixed, val=part(*PETS), classes=classes)
    with pytest.raises(DataError, match=r"all loaders must have the same `classes`, .*; label 2 is missing and fox"):
        splits(Parts, train=part(*PETS), val=part(*PETS, "fox"), classes=classes)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from zip(IMAGES, LABELS, strict=True)


def weighted(dataset: Any) -> DataLoader:
    return DataLoader(dataset, sampler=WeightedRandomSampler([1.0] * len(dataset), 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda dataset: DataLoader(Stream()), "one DataLoader of a map-style dataset, .* exact resume .*; got Stream"),
        (lambda dataset: [DataLoader(dataset)], "must return one DataLoader .*; got list"),
        (partial(DataLoader, collate_fn=list), "must use the default collate_fn"),
        (weighted, r"no sampler of its own, .* data\.sampler=balanced"),
        (lambda dataset: DataLoader(Subset(Stream(), [0])), "`targets`"),
        (lambda dataset: None, "must have a dataset for the split train; got None"),
    ],
)
def test_a_loader_that_cannot_be_repeated_exactly_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        splits(Module, make=make)


def test_hooks_that_a_run_does_not_call_are_refused() -> None:
    class Moved(Module):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    with pytest.raises(DataError, match="must not override on_after_batch_transfer, which a run does not call"):
        splits(Moved)
