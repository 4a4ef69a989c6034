from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Train = Callable[..., float | None]


def histograms(folder: Path) -> dict[str, Any]:
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    events.Reload()
    return {tag: events.Histograms(tag) for tag in events.Tags()["histograms"]}


def test_histograms_of_weights_and_gradients_are_those_of_the_global_batch(train: Train, tmp_path: Path) -> None:
    """Two devices log the same gradients as one, up to the rounding of their sum."""
    options = (
        "callbacks=histograms",
        "callbacks.histograms.every_n_epochs=2",
        "trainer.max_epochs=3",
        "optimizer.lr=0.0",
    )
    found = []
    for devices in (1, 2):
        train(*options, f"trainer.devices={devices}", "model.dropout=0.0", run_dir=tmp_path / str(devices))
        found.append(histograms(tmp_path / str(devices)))
    one, two = found
    assert {"weights/features.conv1.weight", "gradients/features.conv1.weight"} <= one.keys() == two.keys()
    for tag, (event,) in one.items():
        assert event.step == 6 and event.histogram_value.num == two[tag][0].histogram_value.num
        assert event.histogram_value.sum_squares == pytest.approx(two[tag][0].histogram_value.sum_squares, rel=1e-3)


def test_histograms_of_two_towers_are_those_of_the_whole_net(train: Train, tmp_path: Path) -> None:
    net = ("model=alexnet_two_tower", "model.widths=[8,16,16,16,16]", "model.fc_widths=[16,16]", "model.dropout=0.0")
    towers = ("trainer=two_towers", "trainer.accelerator=cpu", "trainer.precision=32-true")
    found = []
    for name, trainer in (("one", ()), ("two", towers)):
        train(
            *net, *trainer, "callbacks=histograms", "trainer.max_epochs=1", "optimizer.lr=0.0", run_dir=tmp_path / name
        )
        found.append(histograms(tmp_path / name))
    one, two = found
    assert one.keys() == two.keys()
    for tag, (event,) in one.items():
        assert event.histogram_value.num == two[tag][0].histogram_value.num, tag
        assert event.histogram_value.sum_squares == pytest.approx(two[tag][0].histogram_value.sum_squares, rel=1e-3)
