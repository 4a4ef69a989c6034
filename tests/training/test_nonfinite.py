"""A loss, gradient or weight that is not finite: the run ends at that step, names the images and saves nothing of it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexlab.errors import NumericError
from alexlab.runs.layout import BEST, LAST
from alexlab.runs.record import RunRecord
from alexlab.training.module import Classifier
from support.exact_resume import content
from support.nonfinite import WORDS, spoil
from support.runs import rows

Train = Callable[..., float | None]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_on_one_device(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, value: float) -> None:
    spoil(monkeypatch, what, value, step=4, rank=0)
    named = r"the loss" if what == "loss" else r"the gradient of features\.conv2\.weight"
    said = rf"{named} must stay finite; it is \S+ at step 4 \(epoch 1, batch 1\); its images are listed in not_finite_rank0\.csv"
    with pytest.raises(NumericError, match=said):
        train(*WORDS)
    run = tmp_path / "run"
    assert RunRecord(run).read()["exit_code"] == 4
    assert content(run / LAST)["global_step"] == 4
    for name in (LAST, BEST):
        assert all(tensor.isfinite().all() for tensor in content(run / name)["state_dict"].values())
    listed = rows(run / "not_finite_rank0.csv")
    assert len(listed) == 8 and {(row["epoch"], row["batch"]) for row in listed} == {("1", "1")}
    assert all(row["path"].startswith(f"train/{row['class']}/") for row in listed)


def test_the_images_are_those_of_the_batch(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again from their files, they are the batch that the net was given."""
    from alexlab.data.decode import decode

    given: list[torch.Tensor] = []
    spoil(monkeypatch, "loss", math.nan, step=4, rank=0)
    own = Classifier.training_step
    monkeypatch.setattr(
        Classifier, "training_step", lambda module, batch, idx: given.append(batch[0]) or own(module, batch, idx)
    )
    with pytest.raises(NumericError):
        train(*WORDS, "data.image_size=70")
    card = RunRecord(tmp_path / "run").read()
    listed = rows(tmp_path / "run/not_finite_rank0.csv")
    for row, image in zip(listed, given[-1], strict=True):
        read = torch.as_tensor(decode(Path(card["config"]["data"]["root"]) / row["path"]))
        assert read.float().mean() == pytest.approx(image.float().mean().item(), abs=2), row


def test_accumulated_batches_are_all_listed(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "gradient", math.nan, step=4, rank=0)
    with pytest.raises(NumericError, match=r"at step 4 \(epoch 1, batch 3\)"):
        train(*WORDS, "trainer.accumulate_grad_batches=2")
    assert {row["batch"] for row in rows(tmp_path / "run/not_finite_rank0.csv")} == {"2", "3"}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_on_one_of_two_ranks(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    spoil(monkeypatch, what, math.nan, step=4, rank=1)
    with pytest.raises(NumericError, match=r"must stay finite; it is nan at step 4"):
        train(*WORDS, "trainer.devices=2")
    run = tmp_path / "run"
    assert content(run / LAST)["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in content(run / LAST)["state_dict"].values())
    assert len(rows(run / "not_finite_rank1.csv")) == 4
    assert (run / "not_finite_rank0.csv").exists() == (what == "gradient")


@pytest.mark.parametrize("extra", [(), ("callbacks=[default,ema]", "callbacks.ema.decay=0.5")])
def test_weights_that_are_not_finite_are_not_saved(train: Train, tmp_path: Path, extra: tuple[str, ...]) -> None:
    """A step from finite numbers that is too large: the weights are the first that are not finite."""
    with pytest.raises(NumericError, match=r"weights must be finite to be saved; net\.\S+ is not at step 1"):
        train(*WORDS, *extra, "optimizer.lr=3e38")
    assert not (tmp_path / "run" / LAST).exists()
    assert RunRecord(tmp_path / "run").read()["exit_code"] == 4
