"""The two-tower AlexNet on two devices takes the same steps and saves the same checkpoints as on one."""

import copy
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch

from alexlab.config import build
from alexlab.config.resolve import TWO_TOWERS, data_world_size
from alexlab.errors import ConfigError
from alexlab.models.alexnet import AlexNet
from alexlab.models.layers import ResponseNorm
from alexlab.models.two_tower import PeerExchange, Tower, merged
from alexlab.records.layout import LAST
from alexlab.records.safe_load import load_file
from alexlab.records.saved_predictions import read_predictions
from alexlab.tasks import rank
from alexlab.training.module import Classifier
from support.runs import plain, rows

pytestmark = pytest.mark.slow

Train = Callable[..., float | None]
NET = ("model=alexnet_two_tower", "model.widths=[8,16,16,16,16]", "model.fc_widths=[16,16]")
OVERRIDES = (*NET, "optimizer=sgd", "optimizer.lr=0.05", "trainer.max_epochs=4", "trainer.log_every_n_steps=1")
TWO = ("trainer=two_towers", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=4")


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[float]]:
    """Record the loss of each step of rank 0, also in a forked process; return a function that pops the losses."""
    original, path = Classifier.training_step, tmp_path / "losses"

    def training_step(module: Classifier, batch: Any, batch_idx: int) -> Any:
        loss = original(module, batch, batch_idx)
        if module.global_rank == 0:
            with path.open("a") as file:
                file.write(f"{loss.item()!r}\n")
        return loss

    def pop() -> list[float]:
        found = [float(line) for line in path.read_text().splitlines()]
        path.unlink()
        return found

    monkeypatch.setattr(Classifier, "training_step", training_step)
    return pop


# Its state holds the logits of all images.
AUROC = "+metrics.auroc._target_=torchmetrics.classification.MulticlassAUROC"


@pytest.mark.filterwarnings("ignore:No positive samples")  # in the check of the metric, on two images
@pytest.mark.parametrize("overrides", [(AUROC,), ("optimizer=adamw", "optimizer.lr=0.002", "data.batch_size=5")])
def test_two_devices_take_the_same_steps_as_one(
    train: Train, tmp_path: Path, losses: Callable[[], list[float]], overrides: tuple[str, ...]
) -> None:
    """At least twelve steps with dropout and augmentation; then each resumes from the checkpoint of the other."""
    train(*OVERRIDES, *overrides, run_dir=tmp_path / "one")
    one = losses()
    train(*OVERRIDES, *TWO, *overrides, run_dir=tmp_path / "two")
    two = losses()
    assert len(one) == len(two) >= 12
    assert two == pytest.approx(one, rel=1e-5)
    for row1, row2 in zip(rows(tmp_path / "one/metrics.csv"), rows(tmp_path / "two/metrics.csv"), strict=True):
        assert (row1["val/top1"], row1["train/top1"]) == (row2["val/top1"], row2["train/top1"])
        assert float(row2["val/loss"]) == pytest.approx(float(row1["val/loss"]), rel=1e-5)
        assert row1.get("val/auroc") == row2.get("val/auroc")
    kept1, kept2 = (read_predictions(tmp_path / name, "val") for name in ("one", "two"))
    assert kept1 is not None and kept2 is not None and kept1.paths.tolist() == kept2.paths.tolist()
    assert kept2.label_prob == pytest.approx(kept1.label_prob, rel=1e-3)
    wholes = [load_file(tmp_path / name / LAST) for name in ("one", "two")]
    assert list(wholes[0]["state_dict"]) == list(wholes[1]["state_dict"])
    for name, value in wholes[0]["state_dict"].items():
        torch.testing.assert_close(wholes[1]["state_dict"][name], value, rtol=1e-3, atol=1e-5, msg=name)
    states = [whole["optimizer_states"][0]["state"] for whole in wholes]
    assert states[0].keys() == states[1].keys()
    for index, entry in states[0].items():
        for key, value in entry.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(states[1][index][key], value, rtol=1e-3, atol=1e-5)

    longer = "trainer.max_epochs=6"
    train(*OVERRIDES, *overrides, longer, run_dir=tmp_path / "two", resumed=True)
    train(*OVERRIDES, *TWO, *overrides, longer, run_dir=tmp_path / "one", resumed=True)
    mixed = losses()
    half = len(mixed) // 2
    assert half >= 6
    assert mixed[:half] == pytest.approx(mixed[half:], rel=1e-4)
    ends = [float(rows(tmp_path / name / "metrics.csv")[-1]["val/loss"]) for name in ("one", "two")]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_both_towers_merge_to_the_whole_net() -> None:
    whole = AlexNet(7, widths=(8, 16, 16, 16, 16), fc_widths=(16, 16), groups=(1, 2, 1, 2, 2), norm="batch")
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    towers = []
    for number in (0, 1):
        net = AlexNet(7, widths=(8, 16, 16, 16, 16), fc_widths=(16, 16), groups=(1, 2, 1, 2, 2), norm="batch")
        towers.append(Tower(net, number))
        towers[-1].load_state_dict(state)
    assert towers[0].classifier.fc8.weight.shape == (4, 16)  # 7 classes: 4 and 3
    assert towers[1].classifier.fc8.bias.shape == (3,)
    assert towers[1].features.conv2.weight.shape == (8, 4, 5, 5)
    assert towers[1].features.conv3.weight.shape == (8, 16, 3, 3)
    counts = [sum(value.numel() for value in tower.parameters()) for tower in towers]
    assert sum(counts) == sum(value.numel() for value in whole.parameters())
    found = merged((towers[0].state_dict(), towers[1].state_dict()), towers[0].shapes)
    assert list(found) == list(state)
    for name, value in state.items():
        assert torch.equal(found[name], value), name


class _Threads(PeerExchange):
    """Exchange between towers in two threads of one process."""

    def __init__(self, tower: int, queues: list[Queue[torch.Tensor]]) -> None:
        super().__init__(tower)
        self.queues = queues

    def exchange(self, own: torch.Tensor) -> torch.Tensor:
        self.queues[1 - self.tower].put(own.detach().clone())
        return self.queues[self.tower].get(timeout=60)


@pytest.mark.parametrize("model", ["alexnet_two_tower", "alexnet_authors", "alexnet_six_convs", "alexnet_bn"])
def test_both_towers_compute_the_logits_and_gradients_of_the_whole_net(model: str) -> None:
    torch.manual_seed(0)
    whole = build.net(plain(f"model={model}", "model.width=0.0625", "model.dropout=0", "model.init=he"), 7).double()
    images, labels = torch.randn(3, 3, 96, 96).double(), torch.tensor([0, 3, 6])
    logits = whole(images)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    queues: list[Queue[torch.Tensor]] = [Queue(), Queue()]
    towers = [Tower(copy.deepcopy(whole), number) for number in (0, 1)]

    def step(tower: Tower) -> torch.Tensor:
        tower.peer = _Threads(tower.peer.tower, queues)
        found = tower(images)
        torch.nn.functional.cross_entropy(found, labels).backward()
        return found.detach()

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(step, towers):
            torch.testing.assert_close(found, logits, rtol=1e-9, atol=1e-9)
    gradients = [{name: parameter.grad for name, parameter in tower.named_parameters()} for tower in towers]
    shapes = {name: value.shape for name, value in expected.items()}
    for name, value in merged((gradients[0], gradients[1]), shapes).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8, msg=name)


def test_response_norm_is_separate_for_each_tower() -> None:
    images = torch.rand(2, 8, 3, 3) * 50
    both = ResponseNorm(2)(images)
    assert torch.equal(both[:, :4], ResponseNorm(1)(images[:, :4]))
    assert not torch.allclose(both, ResponseNorm(1)(images))


def test_only_the_connections_of_the_figure_are_sent(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halves of the inputs of conv3, fc6, fc7 and fc8, forward and backward, and of the logits, forward only.

    For 3 steps with 8 images and a validation of 11 images, and as much in a resumed run.
    """
    path = tmp_path / "sent"
    original = rank.log_communication

    def noted(tower: Tower, steps: int) -> None:
        path.write_text(f"{tower.peer.sent_bytes} {steps}")
        original(tower, steps)

    monkeypatch.setattr(rank, "log_communication", noted)
    backward = 8 * 3 * 3 + 8 * 6 * 6 + 8 + 8
    forward = backward + 2  # half of 3 logits, padded
    for epochs in (1, 2):
        train(*OVERRIDES, *TWO, f"trainer.max_epochs={epochs}", resumed=epochs > 1)
        assert path.read_text() == f"{4 * (3 * 8 * (forward + backward) + 11 * forward)} 3"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("model=alexnet_quarter",),
            "two towers need an AlexNet with model.groups of 1 and 2 that begin with 1, such as [1, 2, 1, 2, 2]",
        ),
        (("model.widths=[8,16,16,16,15]", "model.groups=[1,2,1,2,1]"), "even widths"),
        (("model.norm_layers=[1,3]", "model.groups=[1,2,1,1,2]"), "model.norm=lrn within towers only"),
        (("loss=binary_cross_entropy",), "cross_entropy"),
        (("trainer.devices=1",), "trainer=two_towers needs trainer.devices=2, on one node; got 1 processes"),
        (
            ("trainer.gradient_clip_val=1.0",),
            "trainer.gradient_clip_val must not be set with trainer=two_towers: it needs",
        ),
        (("callbacks=[default,ema]",), "callbacks.ema must not be set with trainer=two_towers: it needs"),
        (("compile.enabled=true",), "compile.enabled must not be set with trainer=two_towers: it needs"),
    ],
)
def test_incompatible_settings_are_rejected(train: Train, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(*NET, *TWO, *overrides)


def test_both_towers_see_all_images() -> None:
    node = {"trainer": {"strategy": TWO_TOWERS}}
    assert data_world_size(node, 2) == 1
    assert data_world_size({"trainer": {"strategy": "auto"}}, 2) == 2
