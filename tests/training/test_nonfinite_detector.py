"""The detector keeps non-finite values on their device until it is polled: no step waits for the device."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alexlab.config import build, build_data
from alexlab.config.data import data_config
from alexlab.config.trainer import build_trainer
from alexlab.errors import NumericError
from alexlab.records.layout import LAST
from alexlab.training import nonfinite
from alexlab.training.module import Classifier
from alexlab.training.nonfinite import NonFiniteDetector, NonFiniteValue
from support.exact_resume import content
from support.nonfinite import OVERRIDES, inject
from support.runs import TINY, plain, rows

Train = Callable[..., float | None]
SYNCS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2")


def test_poll_returns_the_first_value_once() -> None:
    detector = NonFiniteDetector()
    assert detector.poll() is None
    detector.record(["a", "b"], torch.tensor([1.0, 2.0]), step=1, batch_idx=5)
    detector.record(["a", "b"], torch.tensor([1.0, math.inf]), step=2, batch_idx=6, batches=2)
    detector.record(["c"], torch.tensor([math.nan]), step=3, batch_idx=7)
    assert detector.poll() == NonFiniteValue("b", math.inf, 2, 6, 2)
    assert detector.poll() is None
    detector.record(["c"], torch.tensor([3.0]), step=4, batch_idx=8)
    assert detector.poll() is None


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_device_is_polled_at_the_logging_interval(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The error still names the right step, batch and images, and no non-finite weights are saved."""
    monkeypatch.setattr(nonfinite, "poll_is_free", lambda device: False)
    seen: list[int] = []
    step = Classifier.on_train_batch_start

    def counted(module: Classifier, batch: Any, batch_idx: int) -> None:
        seen.append(module.global_step)
        step(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "on_train_batch_start", counted)
    inject(monkeypatch, what, math.nan, step=3, rank=0)
    overrides = [override for override in OVERRIDES if "every_n_steps" not in override]
    name = r"the loss" if what == "loss" else r"the gradient of features\.conv2\.weight"
    with pytest.raises(NumericError, match=rf"{name} must stay finite; it is nan at step 3 \(epoch 2, batch 0\)"):
        train(*overrides, "trainer.log_every_n_steps=5")
    assert seen[-1] == 4, "one step after the non-finite one, at the logging interval"
    assert content(tmp_path / "run" / LAST)["global_step"] == 3
    listed = rows(tmp_path / "run/not_finite_rank0.csv")
    assert {(row["epoch"], row["batch"]) for row in listed} == {("2", "0")}


def test_the_device_is_polled_before_a_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonfinite, "poll_is_free", lambda device: False)
    inject(monkeypatch, "gradient", math.nan, step=3, rank=0)
    with pytest.raises(NumericError, match=r"at step 3 \(epoch 2, batch 0\)"):
        train(*OVERRIDES, "trainer.log_every_n_steps=50")
    assert content(tmp_path / "run" / LAST)["global_step"] == 3


class SyncCounter(TorchDispatchMode):
    """Counter of operations for which the host would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in SYNCS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("overrides", [(), ("optimizer=sgd", "loss.label_smoothing=0.1", "model.norm=batch")])
def test_steps_between_two_logging_points_do_not_wait_for_the_device(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    """Counts all operations of Lightning's loop, the callbacks, the net and the optimizer between the starts of two batches.

    Not covered: EMA waits once per step, in PyTorch's AveragedModel, and MixUp draws on the host.
    """
    monkeypatch.setattr(nonfinite, "poll_is_free", lambda device: False)
    own = (f"data.root={images}", f"data.cache_dir={tmp_path / 'cache'}", "data.num_workers=1", "data.batch_size=2")
    tiny = [override for override in TINY if not override.startswith(("data.num_workers", "data.batch_size"))]
    config = plain(*tiny, *own, *overrides, "trainer.log_every_n_steps=4", "trainer.max_epochs=1")
    splits = data_config(config).find_splits()
    module = build.classifier(config, splits)
    trainer = build_trainer(config, tmp_path, num_ranks=1)
    syncs, counts = SyncCounter(), []
    start = Classifier.on_train_batch_start

    def counted(self: Classifier, batch: Any, batch_idx: int) -> None:
        counts.append(syncs.count)
        start(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "on_train_batch_start", counted)
    with syncs:
        trainer.fit(module, datamodule=build_data.datamodule(config, splits))
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert len(steps) == 11
    synchronized = [number for number, count in enumerate(steps) if count]
    assert synchronized == [3, 7], "only logged steps"
