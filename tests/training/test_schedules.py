import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from alexlab.config import CONFIG_DIR
from alexlab.errors import ConfigError
from alexlab.training import schedules

STEPS = 10  # per epoch
NAMES = sorted(path.stem for path in (CONFIG_DIR / "scheduler").glob("*.yaml") if path.stem != "any")


def rates(
    schedule: schedules.Schedule, optimizer: torch.optim.Optimizer, num_epochs: int, scores: list[float] | None = None
):
    """Return the learning rate of each step, stepping the schedule like Lightning."""
    found = []
    for epoch in range(num_epochs):
        for _ in range(STEPS):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            for entry in schedule:
                if entry["interval"] == "step":
                    entry["scheduler"].step()
        for entry in schedule:
            if entry["interval"] == "epoch":
                entry["scheduler"].step(scores[epoch] if scores else 0.0)
    return found


def run_schedule(name: str, num_epochs: int = 4, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    schedule = getattr(schedules, name)(optimizer, num_epochs=num_epochs, steps_per_epoch=STEPS, **options)
    return rates(schedule, optimizer, num_epochs), schedule


def test_constant_never_changes() -> None:
    assert run_schedule("constant")[0] == [1.0] * 40


def test_step_changes_at_epochs() -> None:
    assert run_schedule("step", step_epochs=2, gamma=0.5)[0] == [1.0] * 20 + [0.5] * 20


def test_multistep_changes_at_its_milestones() -> None:
    found = run_schedule("multistep", milestones=[3, 1], gamma=0.1)[0]
    assert found == pytest.approx([1.0] * 10 + [0.1] * 20 + [0.01] * 10)


def test_cosine_decays_to_its_final_factor() -> None:
    found = run_schedule("cosine", final_factor=0.1)[0]
    assert found[0] == 1.0
    assert found[20] == pytest.approx(0.55)
    assert found[39] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 39 / 40)))


def test_poly_with_power_1_is_linear() -> None:
    assert run_schedule("poly")[0] == pytest.approx([1 - step / 40 for step in range(40)])


def test_one_cycle_goes_up_and_down() -> None:
    found = run_schedule("one_cycle", warmup_epochs=1)[0]
    assert found[0] == pytest.approx(0.04)
    assert max(range(40), key=found.__getitem__) == 9
    assert found[-1] == pytest.approx(1e-4)


@pytest.mark.parametrize("name", ["constant", "step", "multistep", "cosine", "poly", "plateau"])
def test_every_schedule_supports_warm_up(name: str) -> None:
    found = run_schedule(name, warmup_epochs=1, warmup_start=0.5)[0]
    assert found[:11] == pytest.approx([0.5 + 0.05 * step for step in range(11)])


def test_a_run_may_end_within_its_warm_up() -> None:
    for name in ("constant", "step", "multistep", "cosine", "poly", "plateau"):
        assert run_schedule(name, num_epochs=1, warmup_epochs=2)[0][-1] == pytest.approx(0.01 + 0.99 * 9 / 20)
    assert run_schedule("one_cycle", num_epochs=1, warmup_epochs=2)[0][-1] == pytest.approx(1e-4)


def test_one_cycle_matches_pytorch() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, 40, div_factor=25, final_div_factor=400)
    expected = []
    for _ in range(39):
        expected.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
        optimizer.step()
        theirs.step()
    assert list(Run("one_cycle", 4, torch.optim.AdamW, lr=0.5).steps(39)) == expected


def test_one_cycle_supports_very_short_runs() -> None:
    for steps in (1, 2, 3, 5):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        (entry,) = schedules.one_cycle(optimizer, num_epochs=1, steps_per_epoch=steps)
        for _ in range(steps):
            optimizer.step()
            entry["scheduler"].step()


def test_plateau_reduces_when_the_metric_stops_improving() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = schedules.plateau(
        optimizer, num_epochs=6, steps_per_epoch=STEPS, patience=1, warmup_epochs=1, warmup_start=0.5
    )
    assert schedule[1]["monitor"] == "val/top1"
    found = rates(schedule, optimizer, 6, scores=[0.5, 0.6, 0.6, 0.6, 0.6, 0.6])
    assert found[9] < 1.0
    assert found[10::10] == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1])


def test_plateau_has_the_same_entries_for_any_number_of_steps() -> None:
    """A checkpoint is compared with a schedule of another length; a short warm-up rounds to no step."""
    for steps in (2, 1000):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        assert len(schedules.plateau(optimizer, num_epochs=1, steps_per_epoch=steps, warmup_epochs=0.004)) == 2


def test_plateau_does_not_count_validations_of_its_cooldown() -> None:
    """With a patience of 0, every counted validation without improvement halves the rate."""
    found = {}
    for cooldown in (0, 2):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = schedules.plateau(
            optimizer, num_epochs=8, steps_per_epoch=STEPS, patience=0, factor=0.5, cooldown=cooldown
        )
        found[cooldown] = rates(schedule, optimizer, 8, scores=[0.5] * 8)[::STEPS]
    assert found[0] == [1, 1, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]
    assert found[2] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("name", ["multistep", "cosine", "one_cycle"])
def test_a_layer_has_its_own_rates_from_their_epochs_on(name: str) -> None:
    """The authors of 2012: the rate is divided by 10 at epochs 23, 51 and 78; conv1 has 1e-5 from epoch 68 and 0 from 72."""
    weights, conv1 = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [weights]}, {"params": [conv1], "lr_changes": [[68, 1e-5], [72, 0.0]]}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    shape = {"milestones": [23, 51, 78], "gamma": 0.1} if name == "multistep" else {}
    (entry,) = getattr(schedules, name)(optimizer, num_epochs=93, steps_per_epoch=2, **shape)
    found = []
    for _ in range(2 * 93):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        entry["scheduler"].step()
    for step, (rate, rate_of_conv1) in enumerate(found):
        assert rate_of_conv1 == (rate if step < 136 else 1e-5 if step < 144 else 0)
    if name == "multistep":
        expected = [0.01] * 46 + [0.001] * 56 + [1e-4] * 54 + [1e-5] * 30
        assert [rate for rate, _ in found] == pytest.approx(expected)
    resumed = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    (other,) = getattr(schedules, name)(resumed, num_epochs=93, steps_per_epoch=2, **shape)
    other["scheduler"].load_state_dict({"last_epoch": 140})
    assert [group["lr"] for group in resumed.param_groups] == found[140]


def test_rates_of_layers_need_a_schedule_by_epoch() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr_changes": [[1, 0.1]]}], lr=1.0)
    length = {"num_epochs": 1, "steps_per_epoch": STEPS}
    for make, name in (
        (partial(schedules.plateau, optimizer), "plateau"),
        (partial(schedules.from_torch, torch.optim.lr_scheduler.ExponentialLR, optimizer, gamma=0.9), "ExponentialLR"),
    ):
        with pytest.raises(
            ConfigError, match=rf"layer_lrs needs a schedule that is a function of the epoch, .*; got {name}"
        ):
            make(**length)


class Run:
    """Optimizer and schedule that are stepped, saved and loaded like in Lightning."""

    def __init__(self, name: str, num_epochs: int, kind: Any = torch.optim.SGD, **options: Any) -> None:
        options = options or {"lr": 1.0, "momentum": 0.9}
        shape = {"step": {"step_epochs": 1}, "multistep": {"milestones": [1, 4]}, "plateau": {"patience": 0}}
        self.optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
        self.schedule = getattr(schedules, name)(
            self.optimizer, num_epochs=num_epochs, steps_per_epoch=STEPS, **shape.get(name, {})
        )

    def steps(self, count: int, start: int = 0) -> Iterator[tuple[float, float]]:
        """Yield the rate and the momentum of each step."""
        for number in range(start, start + count):
            group = self.optimizer.param_groups[0]
            yield group["lr"], group["betas"][0] if "betas" in group else group["momentum"]
            self.optimizer.step()
            for entry in self.schedule:
                if entry["interval"] == "step":
                    entry["scheduler"].step()
                elif number % STEPS == STEPS - 1:
                    entry["scheduler"].step(0.5)

    def state(self) -> Any:
        return self.optimizer.state_dict(), [entry["scheduler"].state_dict() for entry in self.schedule]

    def load(self, state: Any) -> None:
        self.optimizer.load_state_dict(state[0])
        for entry, own in zip(self.schedule, state[1], strict=True):
            entry["scheduler"].load_state_dict(own)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(("before", "after", "step"), [(3, 5, 14), (3, 5, 30), (5, 3, 14), (3, 3, 14)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.scenario(name="schedules")
def test_a_run_resumed_with_another_length_has_the_rates_of_that_length(
    name: str, before: int, after: int, step: int, kind: Any, tmp_path: Path
) -> None:
    options = {"lr": 1.0} if kind is torch.optim.AdamW else {}
    first, resumed, whole = (Run(name, length, kind, **options) for length in (before, after, after))
    passed = list(first.steps(step))
    torch.save(first.state(), tmp_path / "state.pt")
    resumed.load(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = after * STEPS - step
    expected = list(whole.steps(after * STEPS))
    assert list(resumed.steps(rest, start=step)) == expected[step:]
    if name in ("constant", "step", "multistep", "plateau"):
        assert passed == expected[:step], "the length does not matter"


@pytest.mark.scenario(name="schedules")
def test_a_run_past_its_new_end_keeps_the_last_rate() -> None:
    for name in ("cosine", "poly", "one_cycle"):
        first, resumed = Run(name, 5), Run(name, 2)
        list(first.steps(30))
        resumed.load(first.state())
        assert next(resumed.steps(1))[0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_plain_data(name: str, tmp_path) -> None:
    _, schedule = run_schedule(name, warmup_epochs=1)
    torch.save([entry["scheduler"].state_dict() for entry in schedule], tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)


@pytest.mark.parametrize("name", ["cosine", "poly", "one_cycle"])
def test_a_final_factor_of_0_ends_at_0(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    (entry,) = getattr(schedules, name)(optimizer, num_epochs=1, steps_per_epoch=STEPS, final_factor=0)
    rates([entry], optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine", {"warmup_epochs": -1}, "scheduler.warmup_epochs must be at least 0; got -1"),
        ("plateau", {"warmup_start": 0}, "scheduler.warmup_start must be a factor in (0, 1]; got 0"),
        ("step", {"step_epochs": 0}, "scheduler.step_epochs must be at least 1; got 0"),
        ("step", {"gamma": -0.1}, "scheduler.gamma must be positive; got -0.1"),
        ("multistep", {"gamma": 0}, "scheduler.gamma must be positive; got 0"),
        ("multistep", {"milestones": [3, -1]}, "scheduler.milestones must be epochs after the first; got [3, -1]"),
        ("cosine", {"final_factor": -1}, "scheduler.final_factor must be at least 0; got -1"),
        ("poly", {"final_factor": -1}, "scheduler.final_factor must be at least 0; got -1"),
        ("poly", {"power": -1}, "scheduler.power must be positive; got -1"),
        ("one_cycle", {"final_factor": -1}, "scheduler.final_factor must be at least 0; got -1"),
        ("one_cycle", {"warmup_start": 2}, "scheduler.warmup_start must be a factor in (0, 1]; got 2"),
        ("plateau", {"factor": 1}, "scheduler.factor must be between 0 and 1; got 1"),
        ("plateau", {"patience": -1}, "scheduler.patience must be at least 0; got -1"),
        ("plateau", {"mode": "most"}, "scheduler.mode must be min or max; got most"),
        ("plateau", {"threshold_mode": "x"}, "scheduler.threshold_mode must be rel or abs; got x"),
        ("plateau", {"threshold": -1}, "scheduler.threshold must be at least 0; got -1"),
        ("plateau", {"cooldown": -1}, "scheduler.cooldown must be at least 0; got -1"),
        ("plateau", {"min_lr": -1}, "scheduler.min_lr must be at least 0; got -1"),
    ],
)
def test_invalid_arguments_are_rejected(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        run_schedule(name, **options)
