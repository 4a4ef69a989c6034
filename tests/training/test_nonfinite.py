"""Non-finite losses, gradients and weights: the run ends at that step, lists its images and saves nothing."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexlab.errors import NumericError
from alexlab.records.layout import BEST, LAST
from alexlab.records.record import RunRecord
from alexlab.training.module import Classifier
from support.exact_resume import content
from support.nonfinite import OVERRIDES, inject
from support.runs import rows

pytestmark = pytest.mark.scenario(name="nonfinite")

Train = Callable[..., float | None]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_error_names_the_step_and_lists_its_images(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, value: float
) -> None:
    inject(monkeypatch, what, value, step=4, rank=0)
    name = r"the loss" if what == "loss" else r"the gradient of features\.conv2\.weight"
    message = rf"{name} must stay finite; it is \S+ at step 4 \(epoch 2, batch 1\); its images are listed in not_finite_rank0\.csv"
    with pytest.raises(NumericError, match=message):
        train(*OVERRIDES)
    run = tmp_path / "run"
    assert RunRecord(run).read()["exit_code"] == 4
    assert content(run / LAST)["global_step"] == 4
    for name in (LAST, BEST):
        assert all(tensor.isfinite().all() for tensor in content(run / name)["state_dict"].values())
    listed = rows(run / "not_finite_rank0.csv")
    assert len(listed) == 8 and {(row["epoch"], row["batch"]) for row in listed} == {("2", "1")}
    assert all(row["path"].startswith(f"train/{row['class']}/") for row in listed)


def test_the_listed_images_are_those_of_the_batch(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listed files, decoded again, are the images of the batch."""
    from alexlab.data.decode import decode

    given: list[torch.Tensor] = []
    inject(monkeypatch, "loss", math.nan, step=4, rank=0)
    original = Classifier.training_step
    monkeypatch.setattr(
        Classifier, "training_step", lambda module, batch, idx: given.append(batch[0]) or original(module, batch, idx)
    )
    with pytest.raises(NumericError):
        train(*OVERRIDES, "data.image_size=70")
    record = RunRecord(tmp_path / "run").read()
    listed = rows(tmp_path / "run/not_finite_rank0.csv")
    for row, image in zip(listed, given[-1], strict=True):
        decoded = torch.as_tensor(decode(Path(record["config"]["data"]["root"]) / row["path"]))
        assert decoded.float().mean() == pytest.approx(image.float().mean().item(), abs=2), row


def test_all_accumulated_batches_are_listed(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, "gradient", math.nan, step=4, rank=0)
    with pytest.raises(NumericError, match=r"at step 4 \(epoch 2, batch 3\)"):
        train(*OVERRIDES, "trainer.accumulate_grad_batches=2")
    assert {row["batch"] for row in rows(tmp_path / "run/not_finite_rank0.csv")} == {"2", "3"}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_both_ranks_stop_if_one_has_a_non_finite_value(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    inject(monkeypatch, what, math.nan, step=4, rank=1)
    with pytest.raises(NumericError, match=r"must stay finite; it is nan at step 4"):
        train(*OVERRIDES, "trainer.devices=2")
    run = tmp_path / "run"
    assert content(run / LAST)["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in content(run / LAST)["state_dict"].values())
    assert len(rows(run / "not_finite_rank1.csv")) == 4
    assert (run / "not_finite_rank0.csv").exists() == (what == "gradient")


@pytest.mark.parametrize("extra", [(), ("callbacks=[default,ema]", "callbacks.ema.decay=0.5")])
def test_non_finite_weights_are_not_saved(train: Train, tmp_path: Path, extra: tuple[str, ...]) -> None:
    """A huge learning rate: loss and gradients are finite, the updated weights are not."""
    with pytest.raises(NumericError, match=r"weights must be finite to be saved; net\.\S+ is not finite at step 1"):
        train(*OVERRIDES, *extra, "optimizer.lr=3e38")
    assert not (tmp_path / "run" / LAST).exists()
    assert RunRecord(tmp_path / "run").read()["exit_code"] == 4
