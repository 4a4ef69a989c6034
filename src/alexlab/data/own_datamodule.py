"""Datasets of a LightningDataModule of the user."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import lightning
import numpy as np
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from alexlab.errors import DataError
from alexlab.output.escape import shown

KEY = "data.dataset"
NOTE = (
    "only the datasets of the data module's loaders are used: the run chooses order, batches (data.batch_size) and loader "
    "processes (data.num_workers)"
)
# Hooks that the run would not call.
UNUSED = (
    "transfer_batch_to_device",
    "on_before_batch_transfer",
    "on_after_batch_transfer",
    "state_dict",
    "load_state_dict",
)


class Labelled:
    """Dataset with `classes` and `targets`, also for parts of datasets such as those of `random_split`.

    Args:
        dataset: map-style dataset.
        classes: names of the classes; None for those of the dataset.
    """

    def __init__(self, dataset: Any, classes: Any = None) -> None:
        self.dataset = dataset
        self.own_classes = _classes(dataset)
        if classes is None:
            classes = dataset.classes if self.own_classes is None else self.own_classes
        self.classes = classes
        self.targets = _targets(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


class DataModuleDatasets:
    """The datasets of the loaders of a data module, by split.

    Args:
        make: returns the data module.
    """

    def __init__(self, make: Callable[[], lightning.LightningDataModule]) -> None:
        self.make = make
        self.datamodule: lightning.LightningDataModule | None = None
        self.own_classes: list[str] | None = None  # of the first dataset that has any

    def __call__(self, split: str) -> Labelled | None:
        """Return the dataset of a split, or None if the data module has no loader for it.

        Raises:
            DataError: if the loader or the data module does more than the run can repeat exactly, or if datasets that share
                labels have different classes.
        """
        if self.datamodule is None:
            self.datamodule = self.make()
            for name in UNUSED:
                if is_own(self.datamodule, name):
                    raise DataError(
                        f"{KEY} must not override {name}, which a run does not call; change the items instead"
                    )
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")
        name = f"{split}_dataloader"
        if not is_own(self.datamodule, name):
            return None
        if split == "test":
            self.datamodule.setup("test")
        loader = getattr(self.datamodule, name)()
        if loader is None:
            return None
        _check(loader, f"{KEY}.{name}")
        dataset = Labelled(loader.dataset, getattr(self.datamodule, "classes", None))
        # `classes` of the data module would hide that the label 1 means something else in the other loader.
        self.own_classes = self.own_classes or dataset.own_classes
        _check_same_classes([self.own_classes, dataset.own_classes], "all loaders")
        return dataset


def is_datamodule(target: Any) -> bool:
    """Return whether an object is a class of data modules."""
    return isinstance(target, type) and issubclass(target, lightning.LightningDataModule)


def is_own(datamodule: lightning.LightningDataModule, name: str) -> bool:
    """Return whether the class of a data module overrides a method."""
    return getattr(type(datamodule), name) is not getattr(lightning.LightningDataModule, name)


def _check(loader: Any, where: str) -> None:
    """Raise DataError unless the run's own loader can read the same items."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        kind = type(getattr(loader, "dataset", loader)).__name__
        raise DataError(
            f"{where} must return one DataLoader of a map-style dataset, with len() and items by number: otherwise neither exact "
            f"scores on several devices nor exact resume are possible; got {kind}"
        )
    if loader.collate_fn is not default_collate:
        raise DataError(f"{where} must use the default collate_fn, because the run combines the items; got another one")
    is_plain = type(loader.batch_sampler) is BatchSampler and (
        type(loader.sampler) is SequentialSampler
        or (type(loader.sampler) is RandomSampler and not loader.sampler.replacement)
    )
    if not is_plain:
        raise DataError(
            f"{where} must use shuffle=True or False and no sampler of its own, because the run chooses the order; "
            "data.sampler=balanced draws every class equally often"
        )


def _classes(dataset: Any) -> list[str] | None:
    """Return the names of a dataset's classes, or None if neither it nor a part of it has any.

    Raises:
        DataError: if its parts have different ones.
    """
    if getattr(dataset, "classes", None) is not None:
        return [str(name) for name in dataset.classes]
    if isinstance(dataset, Subset):
        return _classes(dataset.dataset)
    if not isinstance(dataset, ConcatDataset):
        return None
    found = [_classes(part) for part in dataset.datasets]
    _check_same_classes(found, "all parts of a ConcatDataset")
    return next(filter(None, found), None)


def _check_same_classes(found: Sequence[list[str] | None], owners: str) -> None:
    """Raise DataError if the class lists that are known differ."""
    known = [names for names in found if names is not None]
    for names in known:
        for label, (one, other) in enumerate(zip_longest(known[0], names, fillvalue="missing")):
            if one != other:
                raise DataError(
                    f"{KEY}: {owners} must have the same `classes`, because they share the labels; label {label} is "
                    f"{shown(one)} and {shown(other)}; give all of them one list, and labels that follow it"
                )


def _targets(dataset: Any) -> np.ndarray:
    if hasattr(dataset, "targets"):
        return np.asarray(dataset.targets)
    if isinstance(dataset, Subset):
        return _targets(dataset.dataset)[np.asarray(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([_targets(part) for part in dataset.datasets])
    if isinstance(dataset, TensorDataset):
        return np.asarray(dataset.tensors[1])
    return np.asarray(dataset.targets)
