from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from alexlab.config import build_data
from alexlab.config.data import data_config
from alexlab.config.trainer import build_trainer
from alexlab.config.validate import check_objects
from alexlab.data import datamodule
from alexlab.data.datamodule import ImageDataModule
from alexlab.data.limits import num_eval_images
from alexlab.errors import ConfigError
from support.images import write_images
from support.runs import TINY, plain


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits with more than one batch of each class."""
    counts = {"train/ant": 12, "train/bee": 12, "val/ant": 10, "val/bee": 10, "test/ant": 10, "test/bee": 10}
    return write_images(tmp_path_factory.mktemp("data"), counts)


def datamodule_of(root: Path, *overrides: str) -> ImageDataModule:
    config = plain(*TINY, f"data.root={root}", f"data.cache_dir={root.parent}", "data.batch_size=4", *overrides)
    data = build_data.datamodule(config, data_config(config).find_splits())
    data.trainer = build_trainer({**config, "callbacks": {}, "logger": {}}, root.parent, num_ranks=1)
    return data


def labels_of(loader: DataLoader[Any], limit: int) -> list[int]:
    return [label for (_, batch), _ in zip(loader, range(limit), strict=False) for label in batch.tolist()]


@pytest.mark.parametrize(
    "override", ["trainer.limit_val_batches=2", "trainer.limit_val_batches=0.4", "trainer.overfit_batches=2"]
)
def test_a_limited_validation_samples_every_class(root: Path, override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = datamodule_of(root, override)
    labels = labels_of(data.val_dataloader(), 2)
    assert sorted(labels) == [0] * 4 + [1] * 4
    assert num_eval_images(data.splits.val, data.config, data.trainer.limit_val_batches) == 8
    indices = {tuple(batch) for batch in data.val_dataloader().batch_sampler}
    shared: list[int] = []
    for rank in range(2):
        monkeypatch.setattr(datamodule, "data_ranks", lambda trainer, rank=rank: (2, rank))
        shared += [index for batch in data.val_dataloader().batch_sampler for index in batch]
    assert sorted(shared) == sorted(index for batch in indices for index in batch)


def test_a_limited_test_samples_every_class(root: Path) -> None:
    data = datamodule_of(root, "trainer.limit_test_batches=1")
    assert sorted(labels_of(data.test_dataloader(), 1)) == [0, 0, 1, 1]
    assert len(labels_of(data.val_dataloader(), 99)) == 20


def test_the_sample_depends_on_the_split_seed_only(root: Path) -> None:
    samples = [
        list(datamodule_of(root, "trainer.limit_val_batches=2", *more).val_dataloader().batch_sampler)
        for more in ((), ("seed=7",), ("data.split_seed=1",))
    ]
    assert samples[0] == samples[1] != samples[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.limit_val_batches=0.1",
            r"trainer.limit_val_batches must leave at least one batch: 0.1 of 5 val batches is less",
        ),
        (
            "trainer.limit_train_batches=0.1",
            r"limit_train_batches must leave at least one batch: 0.1 of 6 train batches is less",
        ),
        (
            "trainer.limit_test_batches=0.1",
            r"0.1 of 5 test batches is less than one. Use trainer.limit_test_batches=1",
        ),
        ("trainer.overfit_batches=0.1", r"trainer.overfit_batches must leave at least one batch"),
    ],
)
def test_a_limit_of_less_than_one_batch_is_rejected(root: Path, override: str, message: str) -> None:
    config = plain(*TINY, f"data.root={root}", f"data.cache_dir={root.parent}", "data.batch_size=4", override)
    with pytest.raises(ConfigError, match=message):
        check_objects(config, data_config(config).find_splits(), num_ranks=1)
