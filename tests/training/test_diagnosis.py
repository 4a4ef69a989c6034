"""Diagnosis of a loss that does not fall: measurements distinguish the causes, and the training is unchanged."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alexlab.config import build
from alexlab.config.data import data_config
from alexlab.models.vgg import VGG
from alexlab.records.record import RunRecord
from alexlab.training import measurement
from alexlab.training.callbacks.diagnosis import Diagnosis
from alexlab.training.diagnosis import State, describe, describe_dead_outputs, find_cause, guessing_loss
from alexlab.training.losses import BinaryCrossEntropy, CrossEntropy
from alexlab.training.measurement import LayerSignal, Signal, WeightSamples, measure_signal
from alexlab.training.module import Classifier
from support.exact_resume import content
from support.runs import TINY, plain

Train = Callable[..., float | None]
HEALTHY = Signal(images=0.7, logits=0.3, size=0.5, layers=(LayerSignal("features.conv1", 0.7, 0.0),))
NO_DIFFERENCE = Signal(
    0.7, 3e-6, 0.1, (LayerSignal("features.conv1", 0.7, 0), LayerSignal("features.conv4", 0.004, 0.0))
)
DEAD = Signal(0.7, 0.0, 0.0, (LayerSignal("features.conv1", 0.7, 0.1), LayerSignal("features.act5", 0.0, 1.0)))
ONE_DEAD_BRANCH = Signal(0.7, 0.2, 0.4, (LayerSignal("features.5a.branch5", 0.0, 1.0), LayerSignal("fc", 0.3, 0.0)))


def state(**changes: Any) -> State:
    """Return the state of a training whose loss is no better than guessing among 10 classes, with nothing else unusual."""
    values: dict[str, Any] = {
        "loss": 2.3026,
        "guessing": 2.3026,
        "num_classes": 10,
        "images_per_class": 1280.0,
        "classes_seen": 10,
        "num_steps": 100,
        "start": HEALTHY,
        "now": HEALTHY,
        "change": 1e-3,
        "growth": (1.2, "fc6"),
        "first_change": 0.1,
        "lr": 0.1,
    }
    return State(**values | changes)


@pytest.mark.parametrize(
    ("changes", "model", "expected"),
    [
        (
            {"start": NO_DIFFERENCE, "now": NO_DIFFERENCE},
            {"init": "torch", "norm": "none"},
            "at the start the logits differed between images by 3e-06, and from features.conv4 on the activations by under "
            "1%; now the logits differ by 3e-06; try model.init=he or model.norm=batch.",
        ),
        ({"start": NO_DIFFERENCE, "now": NO_DIFFERENCE}, {"init": "he"}, "try a net with batch norms"),
        ({"now": DEAD}, {}, "the units of features.act5 are 0 for all images; try optimizer.lr=0.01, or debug=lr_find"),
        (
            {"start": DEAD, "now": DEAD},
            {"init": "torch"},
            "the units of features.act5 have been 0 for all images since the start; try model.init=he.",
        ),
        (
            {"start": NO_DIFFERENCE},
            {"init": "torch", "weights": "RUN"},
            "now the logits differ by 3e-01; try a net with batch norms",
        ),
        ({"now": NO_DIFFERENCE}, {}, "differ between images by 3e-06, at the start by 3e-01; try optimizer.lr=0.01"),
        (
            {"growth": (58.0, "fc6.weight")},
            {},
            "fc6.weight is 58 times as large as at the start; try optimizer.lr=0.01",
        ),
        (
            {"loss": 14.2, "now": Signal(0.7, 9.0, 30.0, ())},
            {},
            "the loss is 14.2, worse than guessing among 10 classes (2.303): the logits have grown from 0.5 to 30; try",
        ),
        (
            {"change": 5e-8, "lr": 1e-8},
            {},
            "a step changes the weights by 5e-08 of their size, at a learning rate of 1e-08; try optimizer.lr=0.0001",
        ),
        (
            {"change": 0.0, "lr": 1e-9},
            {},
            "by 0e+00 of their size, at a learning rate of 1e-09; try optimizer.lr=1e-05",
        ),
        (
            {"start": Signal(1e-9, 0.0, 0.1, ())},
            {},
            "images of a batch differ by 1e-09 of their size; check preview.png",
        ),
        ({"classes_seen": 1, "loss": 0.0}, {}, "all training images are of one class; check the labels"),
    ],
)
def test_each_cause_has_its_remedy(changes: dict[str, Any], model: dict[str, Any], expected: str) -> None:
    found = describe(state(**changes), model)
    assert found is not None and found[0]
    assert found[1].startswith("after 100 steps the loss is ")
    assert expected in found[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": 2.2},  # falls
        {"start": Signal(0.7, 6e-4, 0.1, ()), "now": Signal(0.7, 9e-5, 0.1, ()), "images_per_class": 12.8},
        {"now": ONE_DEAD_BRANCH, "images_per_class": 12.8},
        {"loss": 2.2, "start": NO_DIFFERENCE, "now": NO_DIFFERENCE},
        {"loss": 2.2, "growth": (50.0, "fc6.weight")},
        {"loss": 6.9, "guessing": 6.9078, "num_classes": 1000, "images_per_class": 12.8, "classes_seen": 1000},
        {"change": 1e-8, "warming_up": True, "images_per_class": 12.8},
    ],
)
def test_healthy_and_slow_trainings_raise_no_alarm(changes: dict[str, Any]) -> None:
    assert find_cause(state(**changes)) is None
    assert describe(state(**changes), {}) is None


def test_weights_that_start_at_zero_have_no_relative_change() -> None:
    for change in (math.nan, math.inf, 0.0):
        assert describe(state(loss=1.5, first_change=change), {}) is None
    net = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(net.weight)
    assert WeightSamples(net).change_per_step(1) == math.inf


def test_dying_units_are_reported_whether_or_not_the_loss_falls() -> None:
    layers = [Signal(0.7, 0.2, 0.4, (LayerSignal("features.act3", 0.7, dead),)) for dead in (0.1, 0.96)]
    found = describe(state(loss=1.5, start=layers[0], now=layers[1]), {})
    assert found is not None and found[0]
    assert found[1].startswith(
        "after 100 steps 96% of the units of features.act3 are 0 for all images, at the start 10%; try optimizer.lr="
    )
    assert describe(state(loss=1.5, start=layers[1], now=layers[1]), {}) is None, "a sparse layer"
    stalled = describe(state(start=layers[0], now=layers[1]), {})
    assert stalled is not None and stalled[0]
    assert "the loss is still 2.303, no better than guessing among 10 classes: 96% of the units of " in stalled[1]


def test_without_a_measured_cause_it_is_no_warning() -> None:
    found = describe(state(), {})
    assert found is not None and not found[0]
    assert "still 2.303, no better than guessing among 10 classes; activations and weights show no cause;" in found[1]


def test_the_loss_of_guessing_is_that_of_the_best_constant_prediction() -> None:
    def guessing(loss: CrossEntropy, counts: list[int]) -> float:
        return guessing_loss(loss, counts, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))

    assert guessing(CrossEntropy([5] * 10), [5] * 10) == pytest.approx(2.302585)
    assert guessing(CrossEntropy([30, 10]), [30, 10]) == pytest.approx(0.562335)  # -(3/4 ln 3/4 + 1/4 ln 1/4)
    assert guessing(CrossEntropy([30, 10, 0]), [30, 10, 0]) == pytest.approx(0.562335)
    assert guessing(BinaryCrossEntropy([20, 20]), [20, 20]) == pytest.approx(0.693147)
    assert guessing(CrossEntropy([2] * 1000), [2] * 1000) == pytest.approx(6.907755)
    assert guessing(CrossEntropy([30, 10], class_weights="balanced"), [30, 10]) == pytest.approx(0.693147)
    # The entropy of the smoothed frequencies: 0.9 f + 0.05, and 0.9 f + 0.01.
    assert guessing(CrossEntropy([99, 1], label_smoothing=0.1), [99, 1]) == pytest.approx(0.224207)
    assert guessing(CrossEntropy([1] * 5 + [0] * 5, label_smoothing=0.1), [1] * 5 + [0] * 5) == pytest.approx(1.807953)


def test_the_loss_of_guessing_is_measured_on_the_labels_of_the_same_steps() -> None:
    """A net that has learned only the frequencies 9 : 1 has a loss of -ln 0.9 for the first class and -ln 0.1 for the other."""
    for labels, expected in (
        ([0] * 8, 0.105361),
        ([0] * 6 + [1] * 2, 0.75 * 0.105361 + 0.25 * 2.302585),
        ([0, 0, -2], 0.105361),
    ):
        assert guessing_loss(CrossEntropy([90, 10]), [90, 10], torch.tensor(labels)) == pytest.approx(
            expected, rel=1e-5
        )
    assert guessing_loss(CrossEntropy([90, 10]), [90, 10], torch.tensor([1])) == pytest.approx(0.693147)  # alike
    assert guessing_loss(CrossEntropy([90, 10]), [90, 10], torch.tensor([-2, -2])) == 0, "no image could be read"


def classifier(images: Path, net: nn.Module | None = None, *overrides: str) -> Classifier:
    config = plain(*TINY, f"data.root={images}", *overrides)
    module = build.classifier(config, data_config(config).find_splits())
    module.net = module.net if net is None else net
    return module


@pytest.mark.parametrize("scheme", ["torch", "he"])
def test_the_first_layer_without_signal_is_named(images: Path, scheme: str) -> None:
    torch.manual_seed(0)
    batch = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    found = measure_signal(classifier(images, VGG(3, width=0.125, init=scheme)), batch)
    assert found.images == pytest.approx(1.0, abs=0.2)
    layer = found.first_without_spread(0.01)
    assert (found.logits < 1e-4 and layer is not None) if scheme == "torch" else (found.logits > 0.1 and layer is None)
    assert [each.name for each in found.layers if "input" not in each.name][:3] == [
        *("features.conv1_1", "features.act1_1", "features.pool1"),
    ]


class FunctionalNet(nn.Module):
    """Net whose ReLU is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(torch.relu(self.conv(images)).mean((2, 3)))
        return logits


def test_dead_units_are_found_behind_layers_and_functions(images: Path) -> None:
    batch = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    module = classifier(images, FunctionalNet())
    assert measure_signal(module, batch).first_dead() is None
    nn.init.constant_(module.net.conv.bias, -1e3)  # type: ignore[operator, union-attr]
    assert measure_signal(module, batch).first_dead() == "the input of fc"
    module = classifier(images)
    nn.init.constant_(module.net.features.conv3.bias, -1e3)  # type: ignore[operator, union-attr]
    assert (
        measure_signal(module, torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)).first_dead() == "features.act3"
    )


def test_measuring_changes_neither_net_nor_generator(images: Path) -> None:
    module = classifier(images, None, "model.norm=batch", "model.dropout=0.5").train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    batch = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    generator = torch.get_rng_state()
    found = measure_signal(module, batch)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert all(layer.training and not layer._forward_hooks for layer in module.net.modules())
    norm = next(layer for layer in found.layers if layer.name == "features.norm1")
    assert norm.spread > 0.1  # normalized by the batch: the running statistics are still 0 and 1
    module.net.eval()  # frozen, as by callbacks=finetune: with the running statistics
    assert measure_signal(module, batch).logits != found.logits


def test_weights_are_sampled_and_their_change_is_relative() -> None:
    net = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 2).requires_grad_(False))
    nn.init.constant_(net[0].weight, 0.5)
    samples = WeightSamples(net)
    assert {name: len(values) for name, values in samples.start.items()} == {"0.weight": 4000}
    assert samples.start["0.weight"].numel() <= measurement.MAX_SAMPLES
    with torch.no_grad():
        net[0].weight += 0.05
    assert samples.change_per_step(100) == pytest.approx(1e-3, rel=1e-5)
    with torch.no_grad():
        net[0].weight *= 20
    assert samples.growth() == (pytest.approx(22), "0.weight")
    tiny = nn.Linear(100, 50)
    nn.init.normal_(tiny.weight, std=1e-4)
    samples = WeightSamples(tiny)
    nn.init.normal_(tiny.weight, std=0.1)
    assert samples.growth()[0] == pytest.approx(1, rel=0.1)  # 1 / sqrt(100), not 1000 times 1e-4


# 24 images in batches of 2: 24 steps in two epochs.
SHORT = ("data.batch_size=2", "trainer.max_epochs=2", "callbacks.diagnosis.after_steps=20", "callbacks.layers=null")


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = content(run / "checkpoints/last.ckpt")["state_dict"]
    return found


def test_a_stalled_run_warns_once_and_is_otherwise_the_same(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The advice is about optimizer.lr, not about the higher rate of the biases.
    rates = ("optimizer.lr=1e-9", "param_groups.bias_lr=1e-8")
    stalled = (*SHORT, "model.norm=batch", "model.dropout=0.5", *rates)
    with caplog.at_level(logging.INFO):
        train(*stalled)
    warned = [record for record in caplog.records if "than guessing among 3 classes" in record.message]
    assert [record.levelname for record in warned] == ["WARNING"]
    assert warned[0].message.startswith("after 20 steps the loss is still 1.")
    assert "at a learning rate of 1e-09; try optimizer.lr=" in warned[0].message
    assert RunRecord(tmp_path / "run").read()["diagnosis"] == warned[0].message
    train(*stalled, "callbacks.diagnosis=null", run_dir=tmp_path / "plain")
    expected = weights(tmp_path / "plain")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "run").items())
    caplog.clear()
    train(*stalled, "trainer.max_epochs=4", resumed=True)
    assert "than guessing" not in caplog.text


def test_a_run_of_few_steps_and_a_run_that_learns_say_nothing(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train("optimizer.lr=1e-9", "callbacks.layers=null")  # 3 steps
    train(*SHORT, "optimizer.lr=0.003", "model.init=he", "model.dropout=0", run_dir=tmp_path / "learns")
    assert "than guessing" not in caplog.text


def test_some_constant_logits_are_dead_outputs() -> None:
    low, high = torch.tensor([0.0, 0.0, -1.0, 2.0]), torch.tensor([0.0, 3.0, 1.0, 2.0])
    names = ["ant", "bee", "cat", "dog"]
    text = describe_dead_outputs(low, high, names, 12)
    assert text is not None
    assert text.startswith(
        "2 of 4 outputs of the net are dead, the same for 12 validation images: ant, dog; try another seed"
    )
    assert describe_dead_outputs(low, high, names, 11) is None, "too few images"
    assert describe_dead_outputs(low, low, names, 12) is None, "the loss is that of guessing"
    assert describe_dead_outputs(low[1:3], high[1:3], names[1:3], 12) is None
    assert describe_dead_outputs(low[:2], high[:2], names[:2], 12) is None, "a logit of two is always 0 with one output"


def test_dead_outputs_are_reported_after_the_first_validation(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = build.classifier

    def with_dead_output(*args: Any, **keywords: Any) -> Classifier:
        module = own(*args, **keywords)
        last = [layer for layer in module.net.modules() if isinstance(layer, nn.Conv2d)][-1]
        assert last.bias is not None
        with torch.no_grad():
            last.weight[1], last.bias[1] = 0, -1  # the ReLU behind it makes this logit 0
            last.bias[[0, 2]] = 1
        return module

    nin = ("model=nin", "model.widths=[4,8,8]", "model.init=he", "data.image_size=112", "optimizer.lr=1e-9")
    train(*nin, without=TINY[:3], run_dir=tmp_path / "alive")
    assert "outputs of the net are dead" not in caplog.text
    monkeypatch.setattr(build, "classifier", with_dead_output)
    train(*nin, "trainer.max_epochs=2", without=TINY[:3], run_dir=tmp_path / "dead")
    text = "after 3 steps 1 of 3 outputs of the net are dead, the same for 11 validation images: "
    assert len([record for record in caplog.records if text in record.message and record.levelname == "WARNING"]) == 1
    assert RunRecord(tmp_path / "dead").read()["diagnosis"].startswith(text)

    step = Classifier.validation_step
    monkeypatch.setattr(Classifier, "validation_step", lambda module, *batch: step(module, *batch).mean())
    train(*nin, without=TINY[:3], run_dir=tmp_path / "mean")
    assert "diagnosis" not in RunRecord(tmp_path / "mean").read(), "a step need not return logits"


def test_fewer_than_20_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="after_steps must be at least 20; got 5"):
        Diagnosis(after_steps=5)
