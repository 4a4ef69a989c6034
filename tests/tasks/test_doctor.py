"""`debug=doctor`: the same steps with each remedy, in a table, and no run."""

import logging
from pathlib import Path
from typing import Any

import pytest

from alexlab.errors import ConfigError
from alexlab.records.run import Run
from alexlab.tasks import doctor
from alexlab.tasks.train import main
from alexlab.training.diagnosis import State
from alexlab.training.measurement import Signal
from support.runs import TINY, plain, rows

SIGNAL = Signal(0.7, 0.3, 0.5, ())
NO_RATES = {"bias_lr": None, "head_lr": None}
REMEDIES = [
    *("as given", "model.init=he", "model.init=xavier", "model.init=kaiming"),
    *("model.init=he optimizer.lr=1e-10", "model.norm=batch"),
    *("optimizer.lr=1e-11", "optimizer.lr=1e-10", "optimizer.lr=1e-08", "optimizer.lr=1e-07"),
]


def run_of(images: Path, run_dir: Path, *overrides: str) -> Run:
    given = (*TINY, f"data.root={images}", f"data.cache_dir={run_dir / 'cache'}", "debug=doctor", *overrides)
    return Run(config=plain(*given), dir=run_dir, overrides=given)


def test_each_remedy_takes_the_same_steps(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """24 images in batches of 2, for 20 of 24 steps."""
    steps = ("data.batch_size=2", "trainer.max_epochs=2", "doctor.num_steps=20", "optimizer.lr=1e-9")
    with caplog.at_level(logging.INFO):
        assert main(run_of(images, tmp_path, *steps)) is None
    table = rows(tmp_path / "doctor.csv")
    assert [row["remedy"] for row in table] == REMEDIES
    assert table[0]["verdict"] == "learning rate too low"
    assert len({row["loss"] for row in table[:5]}) > 1
    assert table[6]["loss"] == table[7]["loss"]  # from the same seed on the same images
    assert "after 20 steps the loss is still " in caplog.text
    assert "debug=doctor compares" not in caplog.text
    assert {path.name for path in tmp_path.iterdir()} <= {"doctor.csv", "cache"}


def test_trials_subtract_the_mean_image_and_scale_all_rates(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []

    def fake(config: Any, splits: Any, trial: Any, mean_image: Any) -> None:
        seen.append((config, mean_image))

    monkeypatch.setattr(doctor, "_train", fake)
    mean = ("data.mean=null", "data.mean_image=true")
    main(run_of(images, tmp_path, *mean, "optimizer.lr=0.01", "param_groups.bias_lr=0.02"))
    assert all(0.01 < image.mean() < 0.99 for _, image in seen)
    rates = {(config["optimizer"]["lr"], config["param_groups"]["bias_lr"]) for config, _ in seen}
    assert sorted(rates) == [(pytest.approx(rate), pytest.approx(2 * rate)) for rate in (1e-4, 1e-3, 1e-2, 0.1, 1.0)]


def state(loss: float, **changes: Any) -> State:
    values: dict[str, Any] = {
        "loss": loss,
        "guessing": 2.3,
        "num_classes": 10,
        "images_per_class": 64.0,
        "classes_seen": 10,
        "num_steps": 100,
        "start": SIGNAL,
        "now": SIGNAL,
        "change": 1e-3,
        "first_change": 0.1,
        "growth": (1.0, "fc6"),
        "lr": 0.1,
    }
    return State(**values | changes)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (None, "not finite"),
        (state(1.5), "learns"),
        (state(2.2), "slow"),
        (state(2.3), "no progress"),
        (state(2.3, change=1e-8), "learning rate too low"),
    ],
)
def test_verdicts(found: State | None, verdict: str) -> None:
    assert doctor.TrialResult("as given", found).verdict == verdict


@pytest.mark.parametrize(
    ("given", "other", "expected"),
    [
        (
            2.3,
            1.5,
            [
                "the loss is lowest with model.init=he optimizer.lr=0.1:",
                "train data.root=DIR model.init=he optimizer.lr=0.1",
            ],
        ),
        (2.3, 2.1, ["the loss is lowest with model.init=he optimizer.lr=0.1:"]),
        (1.2, 1.5, ["the loss falls with the given config"]),
        (2.3, 2.29, ["no remedy makes the loss fall within these steps"]),
    ],
)
def test_the_command_of_the_best_remedy_is_logged(
    given: float, other: float, expected: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = [
        doctor.TrialResult("as given", state(given)),
        doctor.TrialResult("model.init=he optimizer.lr=0.1", state(other)),
    ]
    with caplog.at_level(logging.INFO):
        doctor.report(
            found, Run(config={}, dir=tmp_path, overrides=("debug=doctor", "data.root=DIR", "doctor.max_s=5"))
        )
    assert [text in caplog.text for text in expected] == [True] * len(expected)
    assert ("the loss is lowest with" in caplog.text) == (given == 2.3 and other < 2.2)


def test_too_few_steps_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="debug=doctor needs a run of at least 20 steps; this one has 3"):
        main(run_of(images, tmp_path))
    with pytest.raises(ConfigError, match=r"doctor\.num_steps must be at least 20; got 3"):
        main(run_of(images, tmp_path, "doctor.num_steps=3"))


def test_a_net_without_the_key_gets_it() -> None:
    config = {"model": {"_target_": "own.Net"}, "optimizer": {"lr": 1.0}, "param_groups": NO_RATES}
    found = dict(doctor.remedies(config))
    assert [*found][1:5] == [f"+model.init={name}" for name in ("he", "xavier", "kaiming")] + [
        "+model.init=he optimizer.lr=0.1"
    ]
    assert found["+model.init=he"]["model"]["init"] == "he" and "init" not in config["model"]


def test_pretrained_weights_leave_no_choice_of_initial_ones() -> None:
    config = {
        "model": {"init": "torch", "weights": "RUN", "norm": "none"},
        "optimizer": {"lr": 1},
        "param_groups": NO_RATES,
    }
    assert [name for name, _ in doctor.remedies(config)] == [
        *("as given", "model.norm=batch"),
        *("optimizer.lr=0.01", "optimizer.lr=0.1", "optimizer.lr=10", "optimizer.lr=100"),
    ]
