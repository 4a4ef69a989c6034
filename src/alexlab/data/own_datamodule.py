"""Datasets of a LightningDataModule of the user."""

from collections.abc import Callable
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
        classes: names of the classes; None for the attribute of the dataset.
    """

    def __init__(self, dataset: Any, classes: Any = None) -> None:
        self.dataset = dataset
        self.classes = _classes(dataset) if classes is None else classes
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

    def __call__(self, split: str) -> Labelled | None:
        """Return the dataset of a split, or None if the data module has no loader for it.

        Raises:
            DataError: if the loader or the data module does more than the run can repeat exactly.
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
        return Labelled(loader.dataset, getattr(self.datamodule, "classes", None))


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


def _classes(dataset: Any) -> Any:
    if not hasattr(dataset, "classes") and isinstance(dataset, Subset | ConcatDataset):
        return _classes(dataset.dataset if isinstance(dataset, Subset) else dataset.datasets[0])
    return dataset.classes


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
