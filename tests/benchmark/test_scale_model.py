"""The arithmetic of trainings on devices that one does not have."""

from dataclasses import replace

import pytest

from alexlab.benchmark.scale_model import forecast, without
from alexlab.benchmark.settings import Arithmetic
from alexlab.errors import ConfigError

FAST = Arithmetic(
    images=128_000,
    val_images=5_000,
    epochs=90,
    batch=128,
    step=1280.0,  # 100 ms
    optimizer_s=0.01,
    validation=5000.0,
    loader=200.0,
    cores=8.0,  # 80 ms
    image_kb=100.0,
    disk_mb_s=1280.0,  # 10 ms for each device of a machine
    network_gb_s=2.0,
    overlap=1.0,
    shared=False,
    checkpoint_s=2.0,
    price=3.0,
)


def test_one_device_that_computes() -> None:
    found = forecast(FAST, 1, gradient_mb=244.0)
    assert found.parts == pytest.approx({"net": 0.1, "optimizer": 0.01, "network": 0.0, "loader": 0.08, "disk": 0.01})
    assert found.limit == "net"
    assert found.rate == pytest.approx(128 / 0.11)
    hours = 90 * (1000 * 0.11 + 1.0 + 2.0) / 3600
    assert (found.hours, found.cost) == (pytest.approx(hours), pytest.approx(3 * hours))


def test_the_gradients_hide_behind_two_thirds_of_the_step() -> None:
    """Two devices send 244 MB at 2 GB/s in 122 ms, of which 67 ms are hidden; on 64 it is nearly twice as much."""
    two = forecast(FAST, 2, gradient_mb=244.0)
    assert two.parts["network"] == pytest.approx(0.122)
    assert two.rate == pytest.approx(256 / (0.11 + 0.122 - 2 / 30))
    many = forecast(FAST, 64, gradient_mb=244.0)
    assert many.parts["network"] == pytest.approx(2 * 63 / 64 * 0.122)
    assert many.limit == "network"
    assert forecast(replace(FAST, overlap=0.0), 2, gradient_mb=244.0).rate == pytest.approx(256 / 0.232)


@pytest.mark.parametrize(
    ("changes", "devices", "limit", "step_s"),
    [
        ({"cores": 4.0}, 1, "loader", 0.16),
        ({"disk_mb_s": 40.0}, 1, "disk", 0.32),
        ({"disk_mb_s": 320.0}, 8, "disk", 0.32),
        ({"disk_mb_s": 320.0, "network_gb_s": 1e6}, 64, "disk", 0.32),  # eight on each machine
        ({"optimizer_s": 0.2}, 1, "optimizer", 0.3),
        ({"shared": True}, 1, "net", 0.19),
        ({"shared": True, "cores": 2.0}, 1, "loader", 0.43),
    ],
)
def test_what_a_step_waits_for(changes: dict[str, float], devices: int, limit: str, step_s: float) -> None:
    found = forecast(replace(FAST, **changes), devices, gradient_mb=1.0)  # type: ignore[arg-type]
    assert found.limit == limit
    assert found.rate == pytest.approx(128 * devices / step_s, rel=1e-2)


def test_a_step_without_its_optimizer() -> None:
    assert without(1000.0, 0.02, 100) == pytest.approx(1250.0)


@pytest.mark.parametrize("name", ["epochs", "step", "disk_mb_s"])
def test_words(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"arithmetic\.{name} must be positive"):
        Arithmetic(**{name: 0})  # type: ignore[arg-type]
