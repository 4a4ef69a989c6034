import math
import re

import pytest
import torch

from alexlab import schedules
from alexlab.errors import ConfigError

STEPS = 10  # in an epoch


def rates(
    schedule: schedules.Schedule, optimizer: torch.optim.Optimizer, num_epochs: int, scores: list[float] | None = None
):
    """The learning rate of each step, stepped as Lightning does."""
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


def made(name: str, num_epochs: int = 4, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    schedule = getattr(schedules, name)(optimizer, num_epochs=num_epochs, steps_per_epoch=STEPS, **options)
    return rates(schedule, optimizer, num_epochs), schedule


def test_constant() -> None:
    assert made("constant")[0] == [1.0] * 40


def test_step_changes_at_epochs() -> None:
    assert made("step", step_epochs=2, gamma=0.5)[0] == [1.0] * 20 + [0.5] * 20


def test_multistep_changes_at_its_milestones() -> None:
    found = made("multistep", milestones=[3, 1], gamma=0.1)[0]
    assert found == pytest.approx([1.0] * 10 + [0.1] * 20 + [0.01] * 10)


def test_cosine_goes_to_its_end() -> None:
    found = made("cosine", final_factor=0.1)[0]
    assert found[0] == 1.0
    assert found[20] == pytest.approx(0.55)
    assert found[39] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 39 / 40)))


def test_poly_of_power_1_is_a_line() -> None:
    assert made("poly")[0] == pytest.approx([1 - step / 40 for step in range(40)])


def test_one_cycle_goes_up_and_down() -> None:
    found = made("one_cycle", warmup_epochs=1)[0]
    assert found[0] == pytest.approx(0.04)
    assert max(range(40), key=found.__getitem__) == 9
    assert found[-1] == pytest.approx(1e-4)


@pytest.mark.parametrize("name", ["constant", "step", "multistep", "cosine", "poly", "plateau"])
def test_warm_up_with_any_schedule(name: str) -> None:
    found = made(name, warmup_epochs=1, warmup_start=0.5)[0]
    assert found[:11] == pytest.approx([0.5 + 0.05 * step for step in range(11)])


def test_a_run_may_end_in_its_warm_up() -> None:
    for name in ("constant", "step", "multistep", "cosine", "poly", "plateau"):
        assert made(name, num_epochs=1, warmup_epochs=2)[0][-1] == pytest.approx(0.01 + 0.99 * 9 / 20)
    assert made("one_cycle", num_epochs=1, warmup_epochs=2)[0][-1] == pytest.approx(1e-4)


def test_one_cycle_fits_any_number_of_steps() -> None:
    for steps in (1, 2, 3, 5):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        (entry,) = schedules.one_cycle(optimizer, num_epochs=1, steps_per_epoch=steps)
        for _ in range(steps):
            optimizer.step()
            entry["scheduler"].step()


def test_plateau_divides_when_the_score_stops_improving() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = schedules.plateau(
        optimizer, num_epochs=6, steps_per_epoch=STEPS, patience=1, warmup_epochs=1, warmup_start=0.5
    )
    assert schedule[1]["monitor"] == "val/top1"
    found = rates(schedule, optimizer, 6, scores=[0.5, 0.6, 0.6, 0.6, 0.6, 0.6])
    assert found[9] < 1.0
    assert found[10::10] == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1])


@pytest.mark.parametrize("name", ["constant", "step", "multistep", "cosine", "poly", "one_cycle", "plateau"])
def test_the_state_is_plain_data(name: str, tmp_path) -> None:
    _, schedule = made(name, warmup_epochs=1)
    torch.save([entry["scheduler"].state_dict() for entry in schedule], tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cosine", {"warmup_epochs": -1}, "scheduler.warmup_epochs must be at least 0; got -1"),
        ("plateau", {"warmup_start": 0}, "scheduler.warmup_start must be a factor in (0, 1]; got 0"),
        ("step", {"step_epochs": 0}, "scheduler.step_epochs must be at least 1; got 0"),
    ],
)
def test_words(name: str, options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        made(name, **options)
